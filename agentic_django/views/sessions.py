"""Find a conversation, act on it, show it."""

from __future__ import annotations

import re
from uuid import uuid4

from django.http import Http404, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.urls import reverse

from agentic_django import validation
from agentic_django.engine import session_items, sessions
from agentic_django.models import SESSION_KEY, AgentRun, AgentSession, database
from agentic_django.models.querysets import SessionQuerySet
from agentic_django.presentation import conversation
from agentic_django.views import decorators, fragments, pages, schemas, serializers
from agentic_django.views.decorators import endpoint
from agentic_django.views.negotiation import Format, Request, format_of

__all__ = ["archive", "delete", "detail", "index", "item_list", "new", "rename", "turns"]

MAX_ITEMS = 500


@endpoint("GET", "HEAD")
def new(request: Request) -> HttpResponse:
    """Show the page on which a conversation begins; its first message makes it."""
    chosen = schemas.parse_query(request, schemas.NewQuery).agent
    if chosen:
        decorators.check_agent(request, chosen)
    return pages.new_session(request, _sessions(request), uuid4().hex, chosen)


@endpoint("GET", "HEAD")
def index(request: Request) -> HttpResponse:
    """List conversations, the last used first."""
    asked = schemas.parse_query(request, schemas.SessionsQuery)
    validation.check_json(asked.q, "q")
    listed = pages.listed(_sessions(request), asked)
    match format_of(request):
        case Format.JSON:
            return serializers.sessions(listed)
        case Format.FRAGMENT:
            return fragments.sessions(request, listed)
    return pages.sessions(request, listed)


@endpoint("GET", "HEAD")
def detail(request: Request, session_key: str) -> HttpResponse:
    """Show a conversation."""
    session = find(request, session_key)
    if format_of(request) is Format.JSON:
        return serializers.session(request, session)
    return pages.session(request, _sessions(request), session)


@endpoint("GET", "HEAD")
def turns(request: Request, session_key: str) -> HttpResponse:
    """Show the turns that were begun since; to a page that is open."""
    if not re.fullmatch(SESSION_KEY, session_key):
        raise Http404
    after = schemas.parse_query(request, schemas.TurnsQuery).after
    own = AgentRun.objects.using(database()).visible_to(request.viewer)
    found = conversation.later(own.filter(session__session_key=session_key), after)
    return fragments.turns(request, found) if found else HttpResponse(status=204)


@endpoint("POST")
def rename(request: Request, session_key: str) -> HttpResponse:
    """Give a conversation another title."""
    asked = schemas.parse_body(request, schemas.RenameRequest)
    session = find(request, session_key)
    sessions.rename_session(session, asked.title)
    return _changed(request, session)


@endpoint("POST")
def archive(request: Request, session_key: str) -> HttpResponse:
    """Put a conversation aside, or back."""
    asked = schemas.parse_body(request, schemas.ArchiveRequest)
    session = find(request, session_key)
    sessions.archive_session(session, archived=asked.archived)
    return _changed(request, session)


@endpoint("GET", "HEAD", "POST")
def delete(request: Request, session_key: str) -> HttpResponse:
    """Ask whether a conversation shall be deleted; or delete it."""
    session = find(request, session_key)
    if request.method != "POST":
        return pages.session_delete(request, session)
    schemas.parse_body(request, schemas.DeleteRequest)
    sessions.delete_session(session, by=str(request.user))
    if format_of(request) is Format.JSON:
        return HttpResponse(status=204)
    return _seen_at(request, reverse("agents:session-list"))


@endpoint("GET", "HEAD")
def item_list(request: Request, session_key: str) -> HttpResponse:
    """Show the last items of a conversation, oldest first."""
    limit = min(schemas.parse_query(request, schemas.ItemsQuery).limit, MAX_ITEMS)
    session = find(request, session_key)
    show = fragments.messages if format_of(request) is Format.FRAGMENT else serializers.items
    return show(request, session, session_items.read_items(session, limit))


def _changed(request: Request, session: AgentSession) -> HttpResponse:
    if format_of(request) is Format.JSON:
        return serializers.session(request, session)
    return _seen_at(request, reverse("agents:session-detail", args=[session.session_key]))


def _seen_at(request: Request, address: str) -> HttpResponse:
    """Send a browser, or HTMX, to a page that shows what was changed."""
    if format_of(request) is Format.FRAGMENT:
        return HttpResponse(status=204, headers={"HX-Redirect": address})
    return HttpResponseRedirect(address, status=303)


def _sessions(request: Request) -> SessionQuerySet:
    return AgentSession.objects.using(database()).visible_to(request.viewer)


def find(request: Request, session_key: str) -> AgentSession:
    """Return a conversation of the requester's; raises Http404."""
    if not re.fullmatch(SESSION_KEY, session_key):
        raise Http404
    return get_object_or_404(_sessions(request), session_key=session_key)
