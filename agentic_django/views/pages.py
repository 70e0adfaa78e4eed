"""Renders whole pages, for browsers."""

from __future__ import annotations

from typing import Any

from django.http import HttpResponse

from agentic_django import permissions
from agentic_django.conf import settings
from agentic_django.models import AgentRun, AgentSession, ToolApproval, new_session_key
from agentic_django.presentation.approvals import ApprovalView, as_seen_by
from agentic_django.views import lookup
from agentic_django.views.negotiation import Request
from agentic_django.views.rendering import render
from agentic_django.views.schemas import SessionsQuery
from agentic_django.views.session_list import SessionList, list_sessions

__all__ = [
    "approval",
    "approval_list",
    "delete_session",
    "new_session",
    "run",
    "session",
    "session_list",
]


def _render_page(request: Request, template: str, **context: Any) -> HttpResponse:
    context["base_template"] = settings.BASE_TEMPLATE
    return render(request, f"agentic_django/{template}", context)


def run(request: Request, run: AgentRun) -> HttpResponse:
    """Render the page of a run."""
    return _render_page(request, "run.html", run=run, session=run.session)


def session_list(request: Request, sessions: SessionList) -> HttpResponse:
    """Render the page that lists conversations."""
    return _render_page(request, "sessions.html", session_list=sessions)


def session(request: Request, session: AgentSession) -> HttpResponse:
    """Render the page of a conversation, with the other conversations beside it."""
    query = SessionsQuery(current=session.session_key)
    return _render_page(
        request,
        "session.html",
        session=session,
        session_key=session.session_key,
        session_list=list_sessions(lookup.visible_sessions(request), query),
        agents=[],
    )


def new_session(request: Request, agent_key: str) -> HttpResponse:
    """Render the page of a conversation that the first message creates."""
    session_key = new_session_key()
    query = SessionsQuery(current=session_key)
    return _render_page(
        request,
        "session.html",
        session=None,
        session_key=session_key,
        session_list=list_sessions(lookup.visible_sessions(request), query),
        agents=permissions.usable_agents(request),
        agent_key=agent_key,
    )


def delete_session(request: Request, session: AgentSession) -> HttpResponse:
    """Render the page that asks for confirmation before a conversation is deleted."""
    return _render_page(request, "session_delete.html", session=session)


def approval_list(request: Request, waiting: list[ApprovalView]) -> HttpResponse:
    """Render the page of the approvals that wait for the requester."""
    return _render_page(request, "approvals.html", approvals=waiting)


def approval(request: Request, approval: ToolApproval) -> HttpResponse:
    """Render the page of one approval."""
    return _render_page(request, "approval_page.html", one=as_seen_by(approval, request.user))
