"""Renders parts of pages, for HTMX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.http import HttpResponse

from agentic_django.engine import recovery
from agentic_django.models import AgentRun, AgentSession, ToolApproval
from agentic_django.presentation import conversation
from agentic_django.presentation.approvals import as_seen_by
from agentic_django.views.negotiation import Format, Request, format_of
from agentic_django.views.rendering import render
from agentic_django.views.session_list import SessionList

__all__ = [
    "approval",
    "messages",
    "run_fragment",
    "run_fragment_if_changed",
    "session_list",
    "turns",
]

STOP_POLLING = 286
"""The status that makes htmx 2 stop polling. htmx 4 stops because the trigger is missing."""


def run_fragment(request: Request, run: AgentRun, status: int = 200) -> HttpResponse:
    """Render the fragment of a run."""
    template = "agentic_django/partials/run_fragment.html"
    response = render(request, template, {"run": run}, status=status)
    response.headers["HX-Trigger"] = "run-update"
    return response


def run_fragment_if_changed(request: Request, run: AgentRun) -> HttpResponse:
    """Render the fragment of a run; respond 204 if it has the version in the query string."""
    if run.is_active:
        recovery.start_sweeper()
    if run.is_active and request.GET.get("v") == run.version:
        return HttpResponse(status=204)
    stops_polling = run.is_finished and format_of(request) is Format.FRAGMENT
    return run_fragment(request, run, STOP_POLLING if stops_polling else 200)


def turns(request: Request, runs: Sequence[AgentRun]) -> HttpResponse:
    """Render the fragments of several runs."""
    return render(request, "agentic_django/partials/turns.html", {"runs": runs})


def messages(request: Request, session: AgentSession, items: Sequence[Any]) -> HttpResponse:
    """Render items of a conversation as messages."""
    context = {"session": session, "messages": conversation.messages(items)}
    return render(request, "agentic_django/partials/messages.html", context)


def session_list(request: Request, sessions: SessionList) -> HttpResponse:
    """Render a page of the list of conversations."""
    return render(request, "agentic_django/partials/session_list.html", {"session_list": sessions})


def approval(request: Request, approval: ToolApproval) -> HttpResponse:
    """Render one approval."""
    context = {"one": as_seen_by(approval, request.user)}
    return render(request, "agentic_django/partials/approval.html", context)
