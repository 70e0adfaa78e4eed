"""Views of conversations: list, show, rename, archive, delete; their turns and items."""

from __future__ import annotations

from django.http import HttpResponse
from django.urls import reverse

from agentic_django import validation
from agentic_django.engine import session_items, sessions
from agentic_django.models import AgentSession
from agentic_django.permissions import check_agent_access
from agentic_django.presentation import conversation
from agentic_django.views import fragments, lookup, pages, schemas, serializers
from agentic_django.views.decorators import endpoint
from agentic_django.views.negotiation import Format, Request, format_of, redirect_after_post
from agentic_django.views.session_list import list_sessions

__all__ = ["archive", "delete", "detail", "item_list", "new", "rename", "session_list", "turns"]

MAX_ITEMS = 500


@endpoint("GET", "HEAD")
def new(request: Request) -> HttpResponse:
    """Show the page of a new conversation, which its first message creates."""
    agent_key = schemas.parse_query(request, schemas.NewQuery).agent
    if agent_key:
        check_agent_access(request, agent_key)
    return pages.new_session(request, agent_key)


@endpoint("GET", "HEAD")
def session_list(request: Request) -> HttpResponse:
    """List conversations, the last used first."""
    query = schemas.parse_query(request, schemas.SessionsQuery)
    validation.check_json(query.q, "q")
    found = list_sessions(lookup.visible_sessions(request), query)
    match format_of(request):
        case Format.JSON:
            return serializers.sessions(found)
        case Format.FRAGMENT:
            return fragments.session_list(request, found)
    return pages.session_list(request, found)


@endpoint("GET", "HEAD")
def detail(request: Request, session_key: str) -> HttpResponse:
    """Show a conversation."""
    session = lookup.get_session(request, session_key)
    if format_of(request) is Format.JSON:
        return serializers.session(request, session)
    return pages.session(request, session)


@endpoint("GET", "HEAD")
def turns(request: Request, session_key: str) -> HttpResponse:
    """Show the turns after a position, for a page that is open; respond 204 if there are none."""
    after = schemas.parse_query(request, schemas.TurnsQuery).after
    session = lookup.get_session(request, session_key)
    if session.run_count <= after:  # The positions of its turns are not higher.
        return HttpResponse(status=204)
    runs = lookup.visible_runs(request).filter(session=session)
    found = conversation.turns_after(runs, after)
    return fragments.turns(request, found) if found else HttpResponse(status=204)


@endpoint("POST")
def rename(request: Request, session_key: str) -> HttpResponse:
    """Change the title of a conversation."""
    body = schemas.parse_body(request, schemas.RenameRequest)
    session = lookup.get_session(request, session_key)
    sessions.rename_session(session, body.title)
    return _show_changed_session(request, session)


@endpoint("POST")
def archive(request: Request, session_key: str) -> HttpResponse:
    """Archive a conversation, or restore it."""
    body = schemas.parse_body(request, schemas.ArchiveRequest)
    session = lookup.get_session(request, session_key)
    sessions.archive_session(session, archived=body.archived)
    return _show_changed_session(request, session)


@endpoint("GET", "HEAD", "POST")
def delete(request: Request, session_key: str) -> HttpResponse:
    """Ask for confirmation, or delete a conversation."""
    session = lookup.get_session(request, session_key)
    if request.method != "POST":
        return pages.delete_session(request, session)
    schemas.parse_body(request, schemas.DeleteRequest)
    sessions.delete_session(session, by=str(request.user))
    if format_of(request) is Format.JSON:
        return HttpResponse(status=204)
    return redirect_after_post(request, reverse("agents:session-list"))


@endpoint("GET", "HEAD")
def item_list(request: Request, session_key: str) -> HttpResponse:
    """Show the last items of a conversation, oldest first."""
    limit = min(schemas.parse_query(request, schemas.ItemsQuery).limit, MAX_ITEMS)
    session = lookup.get_session(request, session_key)
    render = fragments.messages if format_of(request) is Format.FRAGMENT else serializers.items
    return render(request, session, session_items.read_items(session, limit))


def _show_changed_session(request: Request, session: AgentSession) -> HttpResponse:
    if format_of(request) is Format.JSON:
        return serializers.session(request, session)
    url = reverse("agents:session-detail", args=[session.session_key])
    return redirect_after_post(request, url)
