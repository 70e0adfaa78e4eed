"""Find a conversation, show it."""

from __future__ import annotations

import re

from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404

from agentic_django import sessions
from agentic_django.models import SESSION_KEY, AgentSession, database
from agentic_django.views import api, bodies, fragments, pages
from agentic_django.views.access import endpoint
from agentic_django.views.negotiation import Format, Request, format_of

__all__ = ["detail", "item_list"]

MAX_ITEMS = 500


@endpoint("GET", "HEAD")
def detail(request: Request, session_key: str) -> HttpResponse:
    """Show a conversation."""
    show = api.session if format_of(request) is Format.JSON else pages.session
    return show(request, find(request, session_key))


@endpoint("GET", "HEAD")
def item_list(request: Request, session_key: str) -> HttpResponse:
    """Show the last items of a conversation, oldest first."""
    limit = min(bodies.query(request, bodies.ItemsQuery).limit, MAX_ITEMS)
    session = find(request, session_key)
    show = fragments.messages if format_of(request) is Format.FRAGMENT else api.items
    return show(request, session, sessions.read(session, limit))


def find(request: Request, session_key: str) -> AgentSession:
    """Return a conversation of the requester's; raises Http404."""
    if not re.fullmatch(SESSION_KEY, session_key):
        raise Http404
    own = AgentSession.objects.using(database()).visible_to(request.viewer)
    return get_object_or_404(own, session_key=session_key)
