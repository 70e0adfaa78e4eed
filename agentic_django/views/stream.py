"""Streams changes of runs as server-sent events.

Under ASGI a stream stays open. Under WSGI it would occupy a thread, so it sends the current state
and closes; the browser connects again after a pause.
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
from django.utils.translation import gettext as _

from agentic_django.concurrency import event_loop
from agentic_django.conf import settings
from agentic_django.engine import recovery
from agentic_django.exceptions import BadInput
from agentic_django.models import AgentRun
from agentic_django.streaming import hub, sse_messages
from agentic_django.streaming.changes import StreamScope
from agentic_django.streaming.cursors import Cursor
from agentic_django.streaming.sse_messages import EventFeed, Feed, PageFeed
from agentic_django.views import lookup, schemas
from agentic_django.views.decorators import endpoint
from agentic_django.views.negotiation import Request

__all__ = ["run_stream", "session_stream", "stream"]

MAX_RUNS = 100
"""The number of runs that one stream may name."""

ALIVE_SECONDS = 5.0
"""The interval of keep-alive messages to a page, because browsers do not report a dead stream."""

KEEP_ALIVE_SECONDS = 15.0
"""The interval at which a quiet stream of events sends a comment, so that proxies keep it open."""

_HEADERS = {"Cache-Control": "private, no-store, no-transform", "X-Accel-Buffering": "no"}

type View = Callable[..., HttpResponse]


def _non_atomic(view: View) -> View:
    """Exclude a view from ATOMIC_REQUESTS: a stream lasts too long for a transaction."""
    for alias in django_settings.DATABASES:
        view = transaction.non_atomic_requests(using=alias)(view)
    return view


@_non_atomic
@endpoint("GET", "HEAD")
def run_stream(request: Request, pk: str) -> HttpResponse:
    """Stream one run."""
    run = lookup.get_run(request, pk)
    query = schemas.parse_query(request, schemas.StreamQuery)
    last_event_id = _last_event_id(request, query)
    if query.format == "html":
        return _stream_to_page(request, last_event_id, [run])
    cursor = _parse_cursor(last_event_id)
    if run.is_finished and cursor.sequence >= run.event_count:
        return HttpResponse(status=204)  # A browser does not connect again after this status.
    levels = lookup.readable_levels(request, query.visibility)
    return _respond(request, EventFeed([run.pk], levels=levels, cursor=cursor))


@_non_atomic
@endpoint("GET", "HEAD")
def session_stream(request: Request, session_key: str) -> HttpResponse:
    """Stream all runs of a conversation."""
    session = lookup.get_session(request, session_key)
    return _stream_scope(request, StreamScope(request.viewer, session.pk))


@_non_atomic
@endpoint("GET", "HEAD")
def stream(request: Request) -> HttpResponse:
    """Stream all runs that the requester may see, or the named ones.

    ``run`` names a run. ``session`` names a conversation with its current and future runs.
    """
    names, sessions = request.GET.getlist("run"), request.GET.getlist("session")
    session_key = schemas.single_values({"session": sessions})["session"] if sessions else None
    if not names and session_key is None:
        return _stream_scope(request, StreamScope(request.viewer))
    if len(names) > MAX_RUNS:
        raise BadInput(errors={"run": _("Name at most %(most)s runs.") % {"most": MAX_RUNS}})
    ids = {lookup.parse_uuid(name) for name in names}
    runs = list(lookup.visible_runs(request).filter(pk__in=ids))
    scope = None
    if session_key is not None:
        scope = StreamScope(request.viewer, lookup.get_session(request, session_key).pk)
    if not runs and scope is None:
        raise Http404
    if schemas.parse_query(request, schemas.StreamQuery).format == "json":
        text = _("Only pages can name runs. Request the stream of one run, or of all runs.")
        raise BadInput(errors={"run": text})
    return _stream_to_page(request, request.headers.get("Last-Event-ID", ""), runs, scope)


def _stream_to_page(
    request: Request, last_event_id: str, runs: list[AgentRun], scope: StreamScope | None = None
) -> HttpResponse:
    if scope is None and last_event_id == sse_messages.END and all(run.is_finished for run in runs):
        return HttpResponse(status=204)
    return _respond(request, PageFeed([run.pk for run in runs], scope))


def _stream_scope(request: Request, scope: StreamScope) -> HttpResponse:
    query = schemas.parse_query(request, schemas.StreamQuery)
    if query.format == "html":
        return _respond(request, PageFeed(scope=scope))
    cursor = _parse_cursor(_last_event_id(request, query))
    if cursor.sequence:
        raise _invalid_cursor()
    levels = lookup.readable_levels(request, query.visibility)
    return _respond(request, EventFeed(scope=scope, levels=levels, cursor=cursor))


def _last_event_id(request: Request, query: schemas.StreamQuery) -> str:
    return request.headers.get("Last-Event-ID") or query.after


def _parse_cursor(text: str) -> Cursor:
    try:
        return Cursor.parse(text) if text else Cursor()
    except (ValueError, OverflowError, OSError) as error:
        raise _invalid_cursor() from error


def _invalid_cursor() -> BadInput:
    return BadInput(errors={"after": _("This is not a valid cursor for this stream.")})


# Responses


def _respond(request: Request, feed: Feed) -> HttpResponse:
    recovery.start_sweeper()
    parts: Any = ()
    if request.method == "GET" and isinstance(request, ASGIRequest):
        parts = _open_stream(feed)
    elif request.method == "GET":
        state = hub.read_once(feed)
        if isinstance(feed, PageFeed):  # The page polls its fragments.
            state += sse_messages.SseMessage("poll", {}).encoded()
        parts = [_first_part(feed, settings.POLL_SECONDS) + state]
    kind = "text/event-stream"
    return cast("HttpResponse", StreamingHttpResponse(parts, content_type=kind, headers=_HEADERS))


def _first_part(feed: Feed, pause: float) -> bytes:
    is_by_time = isinstance(feed, EventFeed) and feed.scope is not None
    event_id = f"id: {Cursor.at(feed.started_at)}\n" if is_by_time else ""
    return f"{event_id}retry: {round(pause * 1000)}\n\n".encode()


async def _open_stream(feed: Feed) -> AsyncIterator[bytes]:
    """Yield messages until the feed ends or ``AGENTIC_DJANGO_STREAM_SECONDS`` have passed."""
    # Without this, the request's thread and its connections are kept until the stream ends.
    await sync_to_async(_close_connections)()
    event_loop.release_request_thread()
    is_page = isinstance(feed, PageFeed)
    quiet_seconds = ALIVE_SECONDS if is_page else KEEP_ALIVE_SECONDS
    alive = sse_messages.SseMessage("alive", {}).encoded() if is_page else b": keep-alive\n\n"
    # Random durations and pauses, so that not all readers connect again at the same moment.
    end = time.monotonic() + settings.STREAM_SECONDS * random.uniform(0.9, 1.1)  # noqa: S311 - not a secret
    yield _first_part(feed, random.uniform(0.5, 2.0)) + alive  # noqa: S311 - not a secret
    async for part in hub.Subscription(feed).chunks(quiet_seconds):
        yield part or alive
        if time.monotonic() > end:
            yield b"retry: 100\n\n"
            return


def _close_connections() -> None:
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close()
