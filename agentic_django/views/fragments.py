"""Pieces of pages, for HTMX."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from django.http import HttpResponse
from django.shortcuts import render

from agentic_django.engine import recovery
from agentic_django.models import AgentRun, AgentSession
from agentic_django.presentation import conversation
from agentic_django.views.negotiation import Format, Request, format_of

if TYPE_CHECKING:
    from agentic_django.views.pages import Listed

__all__ = ["messages", "poll", "sessions", "shown", "turns"]

STOP_POLLING = 286
"""The status that tells htmx 2 to stop asking; in htmx 4 the missing trigger does."""


def shown(request: Request, run: AgentRun, status: int = 200) -> HttpResponse:
    """Answer with a run's fragment."""
    template = "agentic_django/partials/run_fragment.html"
    response = render(request, template, {"run": run}, status=status)
    response.headers["HX-Trigger"] = "run-update"
    return response


def poll(request: Request, run: AgentRun) -> HttpResponse:
    """Answer a fragment that asks whether there is something new since the version it shows."""
    if run.is_active:
        recovery.start_sweeper()
    if run.is_active and request.GET.get("v") == run.version:
        return HttpResponse(status=204)
    stops = run.is_finished and format_of(request) is Format.FRAGMENT
    return shown(request, run, STOP_POLLING if stops else 200)


def turns(request: Request, runs: Sequence[AgentRun]) -> HttpResponse:
    """Answer with the fragments of runs."""
    return render(request, "agentic_django/partials/turns.html", {"runs": runs})


def messages(request: Request, session: AgentSession, items: Sequence[Any]) -> HttpResponse:
    """Answer with the messages that items of a conversation amount to."""
    context = {"session": session, "messages": conversation.messages(items)}
    return render(request, "agentic_django/partials/messages.html", context)


def sessions(request: Request, listed: Listed) -> HttpResponse:
    """Answer with a page of the list of conversations."""
    return render(request, "agentic_django/partials/session_list.html", {"listed": listed})
