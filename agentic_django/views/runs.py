"""Find a run, act on it, show it."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID

from django.core.exceptions import PermissionDenied
from django.db import transaction
from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404, redirect
from django.utils.translation import gettext as _

from agentic_django import events, limits, services, submitted
from agentic_django.conf import settings
from agentic_django.models import AgentRun, AgentSession, database
from agentic_django.querysets import RunScope
from agentic_django.views import api, bodies, fragments, pages
from agentic_django.views.access import check_agent, endpoint
from agentic_django.views.bodies import RunRequest
from agentic_django.views.negotiation import Format, Request, format_of

__all__ = ["cancel", "create", "detail", "event_list", "fragment", "retry"]

MAX_EVENTS = 1000


@endpoint("POST")
def create(request: Request) -> HttpResponse:
    """Start a run."""
    run = _submit(request, bodies.body(request, RunRequest))
    if format_of(request) is Format.JSON:
        return api.created(_find(request, str(run.pk)))
    return _moved(request, run)


def _submit(request: Request, asked: RunRequest) -> AgentRun:
    limits.check_size(asked.input)
    config = limits.client_options(asked.config)
    agent_key = _agent_key(request, asked)
    check_agent(request, agent_key)
    with transaction.atomic(using=database()):
        limits.take(request.viewer)
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
def event_list(request: Request, pk: str) -> HttpResponse:
    """List a run's events behind a sequence number."""
    asked = bodies.query(request, bodies.EventsQuery)
    levels = visible_levels(request, asked.visibility)
    run = get_object_or_404(_runs(request), pk=run_id(pk))
    limit = min(asked.limit, MAX_EVENTS)
    return api.events(run, events.after(run, asked.after, limit=limit, levels=levels), asked.after)


def visible_levels(request: Request, visibility: str) -> tuple[str, ...]:
    """Return which events a requester may read; raises PermissionDenied if he asks for more."""
    try:
        return events.levels(staff=request.viewer.staff, asked=visibility)
    except PermissionError:
        raise PermissionDenied(_("Only staff may read debug events.")) from None


@endpoint("POST")
def cancel(request: Request, pk: str) -> HttpResponse:
    """Stop a run."""
    bodies.body(request, bodies.CancelRequest)
    run = get_object_or_404(_runs(request), pk=run_id(pk))
    return _moved(request, services.cancel_agent_run(run, by=request.user))


@endpoint("POST")
def retry(request: Request, pk: str) -> HttpResponse:
    """Queue a run again."""
    asked = bodies.body(request, bodies.RetryRequest)
    run = get_object_or_404(_runs(request), pk=run_id(pk))
    if not run.is_inline and run.agent_key != submitted.AGENT_KEY:  # Else it is no agent's.
        check_agent(request, run.agent_key)
    with transaction.atomic(using=database()):
        limits.take(request.viewer)
        run = services.retry_agent_run(run, start_again=asked.start_again, by=request.user)
    return _moved(request, run)


def _runs(request: Request) -> RunScope:
    own = AgentRun.objects.using(database()).visible_to(request.viewer)
    return own.select_related("session")


def run_id(pk: str) -> UUID:
    """Return what stands for a run in an address; raises Http404 for what can be no run."""
    try:
        return UUID(pk)
    except ValueError:
        raise Http404 from None


def _find(request: Request, pk: str) -> AgentRun:
    return get_object_or_404(_runs(request).with_place().with_steps(), pk=run_id(pk))


def _moved(request: Request, run: AgentRun) -> HttpResponse:
    """Show a run that this request changed: as it is now, for it may have gone on since."""
    if format_of(request) is Format.PAGE:
        response = redirect("agents:run-detail", pk=run.pk)
        response.status_code = 303
        return response
    return _shown(request, _find(request, str(run.pk)))


def _shown(request: Request, run: AgentRun) -> HttpResponse:
    return _FACES[format_of(request)](request, run)


_FACES: dict[Format, Callable[[Request, AgentRun], HttpResponse]] = {
    Format.JSON: api.run,
    Format.FRAGMENT: fragments.shown,
    Format.PAGE: pages.run,
}
