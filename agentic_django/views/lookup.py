"""Finds the rows that the requester may see. Raises Http404 for all others."""

from __future__ import annotations

import re
from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.http import Http404
from django.shortcuts import get_object_or_404
from django.utils.translation import gettext as _

from agentic_django.engine import events
from agentic_django.models import SESSION_KEY, AgentRun, AgentSession, database
from agentic_django.models.querysets import RunQuerySet, SessionQuerySet
from agentic_django.views.negotiation import Request

__all__ = [
    "check_key",
    "get_run",
    "get_run_for_display",
    "get_session",
    "parse_uuid",
    "readable_levels",
    "visible_runs",
    "visible_sessions",
]


def visible_runs(request: Request) -> RunQuerySet:
    """Return the runs that the requester may see, with their sessions."""
    runs = AgentRun.objects.using(database()).visible_to(request.viewer)
    return runs.select_related("session")


def get_run(request: Request, pk: str) -> AgentRun:
    """Return a run by its id in a URL."""
    return get_object_or_404(visible_runs(request), pk=parse_uuid(pk))


def get_run_for_display(request: Request, pk: str) -> AgentRun:
    """Return a run with its queue position and its steps, which its pages show."""
    runs = visible_runs(request).with_queue_position().with_steps()
    return get_object_or_404(runs, pk=parse_uuid(pk))


def visible_sessions(request: Request) -> SessionQuerySet:
    """Return the conversations that the requester may see."""
    return AgentSession.objects.using(database()).visible_to(request.viewer)


def get_session(request: Request, session_key: str) -> AgentSession:
    """Return a conversation by its key in a URL."""
    check_key(session_key)
    return get_object_or_404(visible_sessions(request), session_key=session_key)


def check_key(session_key: str) -> None:
    """Raise Http404 for an invalid key, which a database may refuse to compare."""
    if not re.fullmatch(SESSION_KEY, session_key):
        raise Http404


def parse_uuid(pk: str) -> UUID:
    """Return the UUID in a URL; raise Http404 if the text is not a UUID."""
    try:
        return UUID(pk)
    except ValueError:
        raise Http404 from None


def readable_levels(request: Request, visibility: str) -> tuple[str, ...]:
    """Return the visibilities of events that the requester may read.

    Raises PermissionDenied if the requester may not read the requested visibility.
    """
    try:
        return events.readable_levels(staff=request.viewer.staff, asked=visibility)
    except PermissionError:
        raise PermissionDenied(_("Only staff may read debug events.")) from None
