"""Renders rows as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.http import JsonResponse
from django.urls import reverse

from agentic_django.models import AgentEvent, AgentRun, AgentSession, ToolApproval
from agentic_django.views.negotiation import Request

if TYPE_CHECKING:
    from agentic_django.views.session_list import SessionList

__all__ = [
    "approval",
    "approvals",
    "created_run",
    "events",
    "items",
    "run",
    "runs",
    "session",
    "sessions",
]


def run(request: Request, run: AgentRun) -> JsonResponse:
    """Render a run."""
    return JsonResponse(_run_document(run))


def created_run(run: AgentRun) -> JsonResponse:
    """Render a run that was just created, with its location."""
    document = _run_document(run)
    return JsonResponse(document, status=201, headers={"Location": document["urls"]["self"]})


def runs(rows: Sequence[AgentRun], *, has_more: bool) -> JsonResponse:
    """Render runs, and the id from which to continue."""
    before = str(rows[-1].pk) if has_more else None
    return JsonResponse({"runs": [_run_document(row) for row in rows], "next_before": before})


def _run_document(run: AgentRun) -> dict[str, Any]:
    names = ("fragment", "events", "stream", "cancel", "retry")
    urls = {
        "self": reverse("agents:run-detail", args=[run.pk]),
        **{name: reverse(f"agents:run-{name}", args=[run.pk]) for name in names},
        **(_session_urls(run.session, "session") if run.session else {}),
    }
    return {
        "run_id": str(run.pk),
        "status": run.status,
        "session_key": run.session.session_key if run.session else None,
        "agent_key": run.agent_key,
        "attempt": run.attempt,
        "output": run.final_output,
        "final_output": run.final_output,
        "error": {"code": run.error_code, "detail": run.error} if run.error_code else None,
        "usage": run.usage,
        "created_at": run.created_at,
        "started_at": run.started_at,
        "finished_at": run.finished_at,
        "urls": urls,
    }


def _session_urls(session: AgentSession, itself: str) -> dict[str, str]:
    names = {itself: "agents:session-detail", "items": "agents:session-items"}
    return {key: reverse(name, args=[session.session_key]) for key, name in names.items()}


def approval(row: ToolApproval) -> JsonResponse:
    """Render an approval."""
    return JsonResponse(_approval_document(row))


def approvals(rows: Sequence[ToolApproval]) -> JsonResponse:
    """Render the approvals that wait for the requester."""
    return JsonResponse({"approvals": [_approval_document(row) for row in rows]})


def _approval_document(row: ToolApproval) -> dict[str, Any]:
    names = (
        *("kind", "call_id", "tool", "agent", "question", "action"),
        *("arguments", "options", "schema"),
        *("requested_at", "expires_at", "decision", "answer", "reason", "decided_at"),
    )
    urls = {"self": ("approval", row.pk), "run": ("run", row.run_id)}
    return {
        "approval_id": str(row.pk),
        "run_id": str(row.run_id),
        "status": row.run.status,
        **{name: getattr(row, name) for name in names},
        "urls": {key: reverse(f"agents:{n}-detail", args=[pk]) for key, (n, pk) in urls.items()},
    }


def events(run: AgentRun, rows: Sequence[AgentEvent], after: int) -> JsonResponse:
    """Render events of a run, and the sequence number from which to continue."""
    names = ("sequence", "event_type", "visibility", "payload", "created_at")
    return JsonResponse(
        {
            "run_id": str(run.pk),
            "status": run.status,
            "events": [{name: getattr(row, name) for name in names} for row in rows],
            "next_after": rows[-1].sequence if rows else after,
        }
    )


def session(request: Request, session: AgentSession) -> JsonResponse:
    """Render a conversation."""
    return JsonResponse(_session_document(session))


def _session_document(session: AgentSession) -> dict[str, Any]:
    names = ("session_key", "title", "agent_key", "created_at", "updated_at", "archived_at")
    document = {name: getattr(session, name) for name in names}
    return {**document, "urls": _session_urls(session, "self")}


def sessions(found: SessionList) -> JsonResponse:
    """Render a page of the list of conversations."""
    rows = [_session_document(row) | {"last_status": row.last_status} for row in found.sessions]  # type: ignore[attr-defined]
    return JsonResponse({"sessions": rows, "next": found.next_url or None})


def items(request: Request, session: AgentSession, items: Sequence[Any]) -> JsonResponse:
    """Render items of a conversation."""
    return JsonResponse({"session_key": session.session_key, "items": items})
