"""Whole pages, for browsers."""

from __future__ import annotations

from django.http import HttpResponse
from django.shortcuts import render

from agentic_django.conf import settings
from agentic_django.models import AgentRun, AgentSession
from agentic_django.views.negotiation import Request

__all__ = ["run", "session"]


def run(request: Request, run: AgentRun) -> HttpResponse:
    """Answer with a run's page."""
    context = {"run": run, "session": run.session, "base_template": settings.BASE_TEMPLATE}
    return render(request, "agentic_django/run.html", context)


def session(request: Request, session: AgentSession) -> HttpResponse:
    """Answer with a conversation's page."""
    context = {"session": session, "base_template": settings.BASE_TEMPLATE}
    return render(request, "agentic_django/session.html", context)
