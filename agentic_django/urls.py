"""The app's addresses: ``path("agents/", include("agentic_django.urls"))``."""

from django.urls import path, re_path

from agentic_django.models import SESSION_KEY
from agentic_django.views import runs, sessions

app_name = "agents"

SESSION = rf"^sessions/(?P<session_key>{SESSION_KEY})/"

urlpatterns = [
    path("runs/", runs.create, name="run-create"),
    path("runs/<uuid:pk>/", runs.detail, name="run-detail"),
    path("runs/<uuid:pk>/fragment/", runs.fragment, name="run-fragment"),
    path("runs/<uuid:pk>/events/", runs.event_list, name="run-events"),
    path("runs/<uuid:pk>/cancel/", runs.cancel, name="run-cancel"),
    path("runs/<uuid:pk>/retry/", runs.retry, name="run-retry"),
    re_path(rf"{SESSION}$", sessions.detail, name="session-detail"),
    re_path(rf"{SESSION}items/$", sessions.item_list, name="session-items"),
]
