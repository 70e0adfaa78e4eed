"""The URLs of the app: ``path("agents/", include("agentic_django.urls"))``."""

from django.urls import path

from agentic_django.views import approvals, runs, sessions, stream

app_name = "agents"

# The views validate ids and keys, so that a 404 has the format that the requester expects.

urlpatterns = [
    path("", sessions.new, name="session-new"),
    path("runs/", runs.create, name="run-create"),
    path("runs/<str:pk>/", runs.detail, name="run-detail"),
    path("runs/<str:pk>/fragment/", runs.fragment, name="run-fragment"),
    path("runs/<str:pk>/pictures/<str:call_id>/<int:number>/", runs.image, name="run-picture"),
    path("runs/<str:pk>/events/", runs.event_list, name="run-events"),
    path("runs/<str:pk>/cancel/", runs.cancel, name="run-cancel"),
    path("runs/<str:pk>/retry/", runs.retry, name="run-retry"),
    path("sessions/", sessions.session_list, name="session-list"),
    path("runs/<str:pk>/stream/", stream.run_stream, name="run-stream"),
    path("approvals/", approvals.approval_list, name="approval-list"),
    path("approvals/<str:pk>/", approvals.detail, name="approval-detail"),
    path("sessions/<str:session_key>/", sessions.detail, name="session-detail"),
    path("sessions/<str:session_key>/rename/", sessions.rename, name="session-rename"),
    path("sessions/<str:session_key>/archive/", sessions.archive, name="session-archive"),
    path("sessions/<str:session_key>/delete/", sessions.delete, name="session-delete"),
    path("sessions/<str:session_key>/items/", sessions.item_list, name="session-items"),
    path("sessions/<str:session_key>/turns/", sessions.turns, name="session-turns"),
    path("sessions/<str:session_key>/stream/", stream.session_stream, name="session-stream"),
    path("stream/", stream.stream, name="stream"),
]
