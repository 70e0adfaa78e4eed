"""Views of runs: create, show, cancel, retry; their events and images."""

from __future__ import annotations

from collections.abc import Callable

from django.db import transaction
from django.db.models import Q, Subquery
from django.http import Http404, HttpResponse, HttpResponseRedirect
from django.urls import reverse

from agentic_django import services, validation
from agentic_django.conf import settings
from agentic_django.engine import events
from agentic_django.models import AgentRun, database
from agentic_django.openai_agents import input_items
from agentic_django.permissions import check_agent_access
from agentic_django.presentation import images
from agentic_django.steps import submitted
from agentic_django.views import fragments, lookup, pages, ratelimit, schemas, serializers
from agentic_django.views.decorators import endpoint
from agentic_django.views.negotiation import Format, Request, format_of, redirect_after_post
from agentic_django.views.schemas import RunRequest

__all__ = ["cancel", "create", "detail", "event_list", "fragment", "image", "retry"]

MAX_EVENTS = 1000
MAX_RUNS = 100


@endpoint("GET", "HEAD", "POST")
def create(request: Request) -> HttpResponse:
    """Submit a run, or list runs."""
    if request.method != "POST":
        return _list(request)
    body = schemas.parse_body(request, RunRequest)
    run = _submit(request, body)
    match format_of(request):
        case Format.JSON:
            return serializers.created_run(lookup.get_run_for_display(request, str(run.pk)))
        case Format.PAGE if body.show == "conversation" and run.session is not None:
            url = reverse(
                "agents:session-detail",
                args=[run.session.session_key],
                fragment=f"run-container-{run.pk}",
            )
            return redirect_after_post(request, url)
    return _show_changed_run(request, run)


def _list(request: Request) -> HttpResponse:
    """List runs as JSON, the newest first. A browser is redirected to the conversations."""
    if format_of(request) is Format.PAGE:
        return HttpResponseRedirect(reverse("agents:session-list"))
    query = schemas.parse_query(request, schemas.RunsQuery)
    runs = lookup.visible_runs(request)
    if query.session_key:
        lookup.check_key(query.session_key)
        runs = runs.filter(session__session_key=query.session_key)
    if query.status:
        runs = runs.filter(status=query.status)
    if query.before:
        last = lookup.get_run(request, str(query.before))
        # The database compares its own value: SQLite stores fewer digits than Django sends.
        created_at = Subquery(
            lookup.visible_runs(request).filter(pk=last.pk).values("created_at")[:1]
        )
        is_later = Q(created_at=created_at, pk__lt=last.pk)
        runs = runs.filter(Q(created_at__lt=created_at) | is_later)
    limit = min(query.limit, MAX_RUNS)
    found = list(runs.order_by("-created_at", "-pk")[: limit + 1])
    return serializers.runs(found[:limit], has_more=len(found) > limit)


def _submit(request: Request, body: RunRequest) -> AgentRun:
    """Check the limits that hold for clients only, and submit the run."""
    validation.check_item_count(body.input)
    input_items.check_client_items(body.input)
    validation.check_client_options(body.config)
    agent_key = body.agent_key
    if not agent_key:
        sessions = lookup.visible_sessions(request).filter(session_key=body.session_key or "")
        agent_keys = sessions.values_list("agent_key", flat=True)
        agent_key = agent_keys.first() or settings.DEFAULT_AGENT_KEY
    check_agent_access(request, agent_key)
    with transaction.atomic(using=database()):
        ratelimit.consume(request.viewer)
        return services.submit_agent_run(
            owner=request.user,
            tenant=request.viewer.tenant,
            input_payload=body.input,
            session_key=body.session_key,
            agent_key=agent_key,
            config=body.config,
            context=body.context,
            on_busy=body.on_busy,
        )


@endpoint("GET", "HEAD")
def detail(request: Request, pk: str) -> HttpResponse:
    """Show a run."""
    return _render(request, lookup.get_run_for_display(request, pk))


@endpoint("GET", "HEAD")
def fragment(request: Request, pk: str) -> HttpResponse:
    """Show the fragment of a run, unless the requester already has its current version."""
    return fragments.run_fragment_if_changed(request, lookup.get_run_for_display(request, pk))


@endpoint("GET", "HEAD")
def image(request: Request, pk: str, call_id: str, number: int) -> HttpResponse:
    """Serve an image that a tool returned or the model generated."""
    found = images.find_image(lookup.get_run(request, pk), call_id, number)
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
    """List the events of a run after a sequence number."""
    query = schemas.parse_query(request, schemas.EventsQuery)
    levels = lookup.readable_levels(request, query.visibility)
    run = lookup.get_run(request, pk)
    limit = min(query.limit, MAX_EVENTS)
    found = events.events_after(run, query.after, limit=limit, levels=levels)
    return serializers.events(run, found, query.after)


@endpoint("POST")
def cancel(request: Request, pk: str) -> HttpResponse:
    """Cancel a run."""
    schemas.parse_body(request, schemas.CancelRequest)
    run = services.cancel_agent_run(lookup.get_run(request, pk), by=request.user)
    return _show_changed_run(request, run)


@endpoint("POST")
def retry(request: Request, pk: str) -> HttpResponse:
    """Retry a run."""
    body = schemas.parse_body(request, schemas.RetryRequest)
    run = lookup.get_run(request, pk)
    if not run.is_inline and run.agent_key != submitted.AGENT_KEY:  # Those have no agent.
        check_agent_access(request, run.agent_key)
    with transaction.atomic(using=database()):
        ratelimit.consume(request.viewer)
        run = services.retry_agent_run(run, start_again=body.start_again, by=request.user)
    return _show_changed_run(request, run)


def _show_changed_run(request: Request, run: AgentRun) -> HttpResponse:
    """Show a run after a POST, in its current state: a worker may have changed it since."""
    if format_of(request) is Format.PAGE:
        return redirect_after_post(request, reverse("agents:run-detail", args=[run.pk]))
    return _render(request, lookup.get_run_for_display(request, str(run.pk)))


def _render(request: Request, run: AgentRun) -> HttpResponse:
    return _RENDERERS[format_of(request)](request, run)


_RENDERERS: dict[Format, Callable[[Request, AgentRun], HttpResponse]] = {
    Format.JSON: serializers.run,
    Format.FRAGMENT: fragments.run_fragment,
    Format.PAGE: pages.run,
}
