"""Find a run, act on it, show it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import Http404, HttpResponse, HttpResponseRedirect
from django.shortcuts import get_object_or_404
from django.urls import reverse
from django.utils.translation import gettext as _

from agentic_django import services, validation
from agentic_django.conf import settings
from agentic_django.engine import events
from agentic_django.models import AgentRun, AgentSession, database
from agentic_django.models.querysets import RunQuerySet
from agentic_django.presentation import images
from agentic_django.steps import submitted
from agentic_django.views import fragments, pages, ratelimit, schemas, serializers
from agentic_django.views.decorators import check_agent, endpoint
from agentic_django.views.negotiation import Format, Request, format_of
from agentic_django.views.schemas import RunRequest

__all__ = ["cancel", "create", "detail", "event_list", "fragment", "picture", "retry"]

MAX_EVENTS = 1000


@endpoint("POST")
def create(request: Request) -> HttpResponse:
    """Start a run."""
    asked = schemas.parse_body(request, RunRequest)
    run = _submit(request, asked)
    match format_of(request):
        case Format.JSON:
            return serializers.created(_find(request, str(run.pk)))
        case Format.PAGE if asked.show == "conversation" and run.session is not None:
            return _seen(
                "agents:session-detail", run.session.session_key, f"run-container-{run.pk}"
            )
    return _moved(request, run)


def _submit(request: Request, asked: RunRequest) -> AgentRun:
    validation.check_item_count(asked.input)
    config = validation.validated_client_options(asked.config)
    agent_key = _agent_key(request, asked)
    check_agent(request, agent_key)
    with transaction.atomic(using=database()):
        ratelimit.consume(request.viewer)
        return services.submit_agent_run(
            owner=request.user,
            tenant=request.viewer.tenant,
            input_payload=asked.input,
            session_key=asked.session_key,
            agent_key=agent_key,
            config=config,
            context=asked.context,
            on_busy=asked.on_busy,
        )


def _agent_key(request: Request, asked: RunRequest) -> str:
    if asked.agent_key:
        return asked.agent_key
    own = AgentSession.objects.using(database()).visible_to(request.viewer)
    keys = own.filter(session_key=asked.session_key or "").values_list("agent_key", flat=True)
    return keys.first() or settings.DEFAULT_AGENT_KEY


@endpoint("GET", "HEAD")
def detail(request: Request, pk: str) -> HttpResponse:
    """Show a run."""
    return _shown(request, _find(request, pk))


@endpoint("GET", "HEAD")
def fragment(request: Request, pk: str) -> HttpResponse:
    """Show a run's fragment, if it is not the version that the caller has."""
    return fragments.poll(request, _find(request, pk))


@endpoint("GET", "HEAD")
def picture(request: Request, pk: str, call_id: str, number: int) -> HttpResponse:
    """Serve a picture that a tool returned or the model made."""
    run = get_object_or_404(_runs(request), pk=run_id(pk))
    found = images.find_image(run, call_id, number)
    if found is None:
        raise Http404
    headers = {
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cache-Control": "private, max-age=86400",
    }
    return HttpResponse(found.content, content_type=found.content_type, headers=headers)


@endpoint("GET", "HEAD")
def event_list(request: Request, pk: str) -> HttpResponse:
    """List a run's events behind a sequence number."""
    asked = schemas.parse_query(request, schemas.EventsQuery)
    levels = visible_levels(request, asked.visibility)
    run = get_object_or_404(_runs(request), pk=run_id(pk))
    limit = min(asked.limit, MAX_EVENTS)
    return serializers.events(
        run, events.events_after(run, asked.after, limit=limit, levels=levels), asked.after
    )


def visible_levels(request: Request, visibility: str) -> tuple[str, ...]:
    """Return which events a requester may read; raises PermissionDenied if he asks for more."""
    try:
        return events.readable_levels(staff=request.viewer.staff, asked=visibility)
    except PermissionError:
        raise PermissionDenied(_("Only staff may read debug events.")) from None


@endpoint("POST")
def cancel(request: Request, pk: str) -> HttpResponse:
    """Stop a run."""
    schemas.parse_body(request, schemas.CancelRequest)
    run = get_object_or_404(_runs(request), pk=run_id(pk))
    return _moved(request, services.cancel_agent_run(run, by=request.user))


@endpoint("POST")
def retry(request: Request, pk: str) -> HttpResponse:
    """Queue a run again."""
    asked = schemas.parse_body(request, schemas.RetryRequest)
    run = get_object_or_404(_runs(request), pk=run_id(pk))
    if not run.is_inline and run.agent_key != submitted.AGENT_KEY:  # Else it is no agent's.
        check_agent(request, run.agent_key)
    with transaction.atomic(using=database()):
        ratelimit.consume(request.viewer)
        run = services.retry_agent_run(run, start_again=asked.start_again, by=request.user)
    return _moved(request, run)


def _runs(request: Request) -> RunQuerySet:
    own = AgentRun.objects.using(database()).visible_to(request.viewer)
    return own.select_related("session")


def run_id(pk: str) -> UUID:
    """Return what stands for a run in an address; raises Http404 for what can be no run."""
    try:
        return UUID(pk)
    except ValueError:
        raise Http404 from None


def _find(request: Request, pk: str) -> AgentRun:
    return get_object_or_404(_runs(request).with_queue_position().with_steps(), pk=run_id(pk))


def _moved(request: Request, run: AgentRun) -> HttpResponse:
    """Show a run that this request changed: as it is now, for it may have gone on since."""
    if format_of(request) is Format.PAGE:
        return _seen("agents:run-detail", run.pk)
    return _shown(request, _find(request, str(run.pk)))


def _seen(name: str, key: Any, place: str = "") -> HttpResponse:
    """Send a browser to a page that shows what was done, or to a place on it."""
    address = reverse(name, args=[key], fragment=place or None)
    return HttpResponseRedirect(address, status=303)


def _shown(request: Request, run: AgentRun) -> HttpResponse:
    return _FACES[format_of(request)](request, run)


_FACES: dict[Format, Callable[[Request, AgentRun], HttpResponse]] = {
    Format.JSON: serializers.run,
    Format.FRAGMENT: fragments.shown,
    Format.PAGE: pages.run,
}
