"""The app's addresses: ``path("agents/", include("agentic_django.urls"))``."""

from django.urls import path

from agentic_django.views import approvals, runs, sessions, stream

app_name = "agents"

# What stands for a run or a conversation is looked at by the view, so that what is none is told
# in the caller's format.

urlpatterns = [
    path("", sessions.new, name="session-new"),
    path("runs/", runs.create, name="run-create"),
    path("runs/<str:pk>/", runs.detail, name="run-detail"),
    path("runs/<str:pk>/fragment/", runs.fragment, name="run-fragment"),
    path("runs/<str:pk>/pictures/<str:call_id>/<int:number>/", runs.picture, name="run-picture"),
    path("runs/<str:pk>/events/", runs.event_list, name="run-events"),
    path("runs/<str:pk>/cancel/", runs.cancel, name="run-cancel"),
    path("runs/<str:pk>/retry/", runs.retry, name="run-retry"),
    path("sessions/", sessions.index, name="session-list"),
    path("runs/<str:pk>/stream/", stream.run, name="run-stream"),
    path("approvals/", approvals.listing, name="approval-list"),
    path("approvals/<str:pk>/", approvals.detail, name="approval-detail"),
    path("sessions/<str:session_key>/", sessions.detail, name="session-detail"),
    path("sessions/<str:session_key>/rename/", sessions.rename, name="session-rename"),
    path("sessions/<str:session_key>/archive/", sessions.archive, name="session-archive"),
    path("sessions/<str:session_key>/delete/", sessions.delete, name="session-delete"),
    path("sessions/<str:session_key>/items/", sessions.item_list, name="session-items"),
    path("sessions/<str:session_key>/turns/", sessions.turns, name="session-turns"),
    path("sessions/<str:session_key>/stream/", stream.session, name="session-stream"),
    path("stream/", stream.everything, name="stream"),
]
