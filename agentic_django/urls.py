"""The app's addresses: ``path("agents/", include("agentic_django.urls"))``."""

from django.urls import path

from agentic_django.views import approvals, runs, sessions, stream

app_name = "agents"

# What stands for a run or a conversation is looked at by the view, so that what is none is told
# in the caller's format.

urlpatterns = [
    path("runs/", runs.create, name="run-create"),
    path("runs/<str:pk>/", runs.detail, name="run-detail"),
    path("runs/<str:pk>/fragment/", runs.fragment, name="run-fragment"),
    path("runs/<str:pk>/events/", runs.event_list, name="run-events"),
    path("runs/<str:pk>/cancel/", runs.cancel, name="run-cancel"),
    path("runs/<str:pk>/retry/", runs.retry, name="run-retry"),
    path("runs/<str:pk>/stream/", stream.run, name="run-stream"),
    path("approvals/", approvals.listing, name="approval-list"),
    path("approvals/<str:pk>/", approvals.detail, name="approval-detail"),
    path("sessions/<str:session_key>/", sessions.detail, name="session-detail"),
    path("sessions/<str:session_key>/items/", sessions.item_list, name="session-items"),
    path("sessions/<str:session_key>/stream/", stream.session, name="session-stream"),
    path("stream/", stream.everything, name="stream"),
]
