"""Server-sent events: what is new of runs, as it happens.

Under ASGI a stream stays open. Under WSGI it would keep a thread, so there it sends what is
there, says when to come back, and closes.
"""

from __future__ import annotations

import random
import time
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

from asgiref.sync import sync_to_async
from django.conf import settings as django_settings
from django.core.handlers.asgi import ASGIRequest
from django.db import connections, transaction
from django.http import Http404, HttpResponse, StreamingHttpResponse
from django.shortcuts import get_object_or_404
from django.utils.translation import gettext as _

from agentic_django.concurrency import event_loop
from agentic_django.conf import settings
from agentic_django.engine import recovery
from agentic_django.exceptions import BadInput
from agentic_django.models import AgentRun, AgentSession, database
from agentic_django.models.querysets import RunQuerySet
from agentic_django.streaming import hub, messages
from agentic_django.streaming.changes import StreamScope
from agentic_django.streaming.messages import Cursor, EventFeed, Feed, PageFeed
from agentic_django.views import schemas, sessions
from agentic_django.views.decorators import endpoint
from agentic_django.views.negotiation import Request
from agentic_django.views.runs import run_id, visible_levels

__all__ = ["everything", "run", "session"]

MOST_RUNS = 100
"""So many runs a page may ask for at once."""

ALIVE_SECONDS = 5.0
"""A page is told so often that the stream is alive, for its browser does not tell it."""

KEEP_ALIVE_SECONDS = 15.0
_HEADERS = {"Cache-Control": "private, no-store, no-transform", "X-Accel-Buffering": "no"}

type View = Callable[..., HttpResponse]


def _non_atomic(view: View) -> View:
    """Let a view be, where each request is a transaction: a stream lasts too long for one."""
    for alias in django_settings.DATABASES:
        view = transaction.non_atomic_requests(using=alias)(view)
    return view


@_non_atomic
@endpoint("GET", "HEAD")
def run(request: Request, pk: str) -> HttpResponse:
    """Stream one run."""
    found = get_object_or_404(_runs(request), pk=run_id(pk))
    asked = schemas.parse_query(request, schemas.StreamQuery)
    place = _place(request, asked)
    if asked.format == "json":
        cursor = _cursor(place)
        if found.is_finished and cursor.sequence >= found.event_count:
            return HttpResponse(status=204)  # Which ends a browser's attempts to come back.
        return _stream(
            request,
            EventFeed([found.pk], levels=visible_levels(request, asked.visibility), cursor=cursor),
        )
    return _pages(request, place, [found])


@_non_atomic
@endpoint("GET", "HEAD")
def session(request: Request, session_key: str) -> HttpResponse:
    """Stream all runs of a conversation."""
    found: AgentSession = sessions.find(request, session_key)
    return _scoped(request, StreamScope(request.viewer, found.pk))


@_non_atomic
@endpoint("GET", "HEAD")
def everything(request: Request) -> HttpResponse:
    """Stream all runs that the requester may see, or those that are named.

    ``run`` names one, ``session`` a conversation with all that are in it, now and later.
    """
    asked, key = request.GET.getlist("run"), request.GET.get("session")
    if not asked and key is None:
        return _scoped(request, StreamScope(request.viewer))
    if len(asked) > MOST_RUNS:
        raise BadInput(errors={"run": _("Name at most %(most)s runs.") % {"most": MOST_RUNS}})
    found = list(_runs(request).filter(pk__in={run_id(pk) for pk in asked}))
    scope = None if key is None else StreamScope(request.viewer, sessions.find(request, key).pk)
    if not found and scope is None:
        raise Http404
    if schemas.parse_query(request, schemas.StreamQuery).format == "json":
        text = _("Only pages can name runs. Request the stream of one run, or of all runs.")
        raise BadInput(errors={"run": text})
    return _pages(request, _place(request, schemas.StreamQuery()), found, scope)


def _runs(request: Request) -> RunQuerySet:
    return AgentRun.objects.using(database()).visible_to(request.viewer)


def _pages(
    request: Request, place: str, found: list[AgentRun], scope: StreamScope | None = None
) -> HttpResponse:
    if scope is None and place == messages.END and all(run.is_finished for run in found):
        return HttpResponse(status=204)
    return _stream(request, PageFeed([run.pk for run in found], scope))


def _scoped(request: Request, scope: StreamScope) -> HttpResponse:
    asked = schemas.parse_query(request, schemas.StreamQuery)
    if asked.format == "html":
        return _stream(request, PageFeed(scope=scope))
    cursor = _cursor(_place(request, asked))
    if cursor.sequence:
        raise BadInput(errors={"after": _("This is not a valid cursor for this stream.")})
    return _stream(
        request,
        EventFeed(scope=scope, levels=visible_levels(request, asked.visibility), cursor=cursor),
    )


def _place(request: Request, asked: schemas.StreamQuery) -> str:
    return request.headers.get("Last-Event-ID") or asked.after


def _cursor(place: str) -> Cursor:
    try:
        return Cursor.parse(place) if place else Cursor()
    except (ValueError, OverflowError, OSError) as error:
        raise BadInput(
            errors={"after": _("This is not a valid cursor for this stream.")}
        ) from error


# Sending


def _stream(request: Request, follower: Feed) -> HttpResponse:
    recovery.start_sweeper()
    parts: Any = ()
    if request.method == "GET":
        parts = _open(follower) if isinstance(request, ASGIRequest) else [_closed(follower)]
    kind = "text/event-stream"
    return cast("HttpResponse", StreamingHttpResponse(parts, content_type=kind, headers=_HEADERS))


def _closed(follower: Feed) -> bytes:
    """Return what there is, and when to come back."""
    told = hub.read_once(follower)
    if isinstance(follower, PageFeed):  # It asks for its fragments anyway.
        told += messages.SseMessage("poll", {}).encoded()
    return _begin(follower, settings.POLL_SECONDS) + told


def _begin(follower: Feed, pause: float) -> bytes:
    place = f"id: {Cursor.at(follower.started_at)}\n" if _is_by_time(follower) else ""
    return f"{place}retry: {round(pause * 1000)}\n\n".encode()


def _is_by_time(follower: Feed) -> bool:
    return isinstance(follower, EventFeed) and follower.scope is not None


async def _open(follower: Feed) -> AsyncIterator[bytes]:
    """Yield what is told, until the stream has lasted long enough or there is no more to tell."""
    # The request's thread, and its connections, would be kept for as long as the answer takes.
    await sync_to_async(_disconnect)()
    event_loop.release_request_thread()
    is_page = isinstance(follower, PageFeed)
    quiet = ALIVE_SECONDS if is_page else KEEP_ALIVE_SECONDS
    alive = messages.SseMessage("alive", {}).encoded() if is_page else b": keep-alive\n\n"
    # Those who were cut off together do not come back together.
    end = time.monotonic() + settings.STREAM_SECONDS * random.uniform(0.9, 1.1)  # noqa: S311 - no secret
    yield _begin(follower, random.uniform(0.5, 2.0)) + alive  # noqa: S311 - no secret
    async for part in hub.Subscription(follower).chunks(quiet):
        yield part or alive
        if time.monotonic() > end:
            yield b"retry: 100\n\n"
            return


def _disconnect() -> None:
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()
