"""Template tags and filters: ``{% load agentic_django_tags %}``.

None of them needs ``request`` in the context.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from django import template
from django.templatetags.static import static
from django.utils.formats import number_format
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext as _
from django.utils.translation import ngettext
from django_htmx.jinja import htmx_script

from agentic_django.conf import settings
from agentic_django.engine import events
from agentic_django.models import AgentEvent, AgentRun, AgentSession
from agentic_django.presentation import (
    approvals,
    conversation,
    growing_text,
    host_templates,
    markdown,
    outputs,
    timeline,
    wording,
)

register = template.Library()

PARTIALS = "agentic_django/partials"
MAX_EVENTS = 200
HTMX_CONFIG = '{"allowEval":false,"includeIndicatorStyles":false}'

register.filter("agent_activity", wording.activity)
register.filter("agent_advice", wording.advice)
register.filter("agent_debug_detail", wording.debug_detail)
register.filter("agent_ago", wording.ago)
register.filter("agent_approvals", approvals.open_for_run)
register.filter("agent_input", conversation.input_messages)
register.filter("agent_cost", wording.cost)
register.filter("agent_duration", wording.duration)
register.filter("agent_elapsed", wording.elapsed)
register.filter("agent_event_summary", wording.event_summary)
register.filter("agent_event_words", wording.event)
register.filter("agent_in_all", wording.in_all)
register.filter("agent_in_words", wording.in_words)
register.filter("agent_is_reconnecting", wording.is_reconnecting)
register.filter("agent_growing", growing_text.growing)
register.filter("agent_markdown", markdown.markdown)
register.filter("agent_name", conversation.agent_name)
register.filter("agent_output", outputs.run_output)
register.filter("agent_pieces", conversation.pieces)
register.filter("agent_progress", wording.progress)
register.filter("agent_reason", wording.reason)
register.filter("agent_readable", outputs.readable)
register.filter("agent_short", wording.short)
register.filter("agent_since", wording.since)
register.filter("agent_texts", conversation.texts_before_answer)
register.filter("agent_stages", wording.stages)
register.filter("agent_tool_calls", conversation.tool_calls)
register.filter("agent_took", wording.took)
register.filter("agent_waited", wording.waited)


@register.inclusion_tag(f"{PARTIALS}/run_fragment.html", takes_context=True)
def agent_run_fragment(context: template.Context, run: AgentRun) -> dict[str, Any]:
    """Show one run, which updates itself: ``{% agent_run_fragment run %}``."""
    return {"run": run}


@register.inclusion_tag(f"{PARTIALS}/run.html", takes_context=True)
def agent_run(context: template.Context, run: AgentRun) -> dict[str, Any]:
    """Show a run in full: metrics, timeline, the run itself and its events."""
    return {"run": run, "session": run.session, "timeline": timeline.timeline(run)}


@register.inclusion_tag(f"{PARTIALS}/timeline.html", takes_context=True)
def agent_run_timeline(context: template.Context, run: AgentRun) -> dict[str, Any]:
    """Show the timeline of a run, as a table with bars: ``{% agent_run_timeline run %}``."""
    return {"run": run, "timeline": timeline.timeline(run)}


@register.simple_tag
def agent_break(row: timeline.TimelineRow) -> tuple[str, str, str]:
    """Return the positions of the two strokes that mark a shortened bar."""
    middle = row.x + row.width / 2
    return f"{middle - 9:.2f}", f"{middle - 1:.2f}", f"{middle + 7:.2f}"


@register.inclusion_tag(f"{PARTIALS}/conversation.html", takes_context=True)
def agent_conversation(context: template.Context, session: AgentSession | str) -> dict[str, Any]:
    """Show a conversation. A key that does not exist yet shows an empty one."""
    return _log(session)


def _log(session: AgentSession | str) -> dict[str, Any]:
    if isinstance(session, AgentSession):
        return {"session_key": session.session_key, "turns": conversation.turns(session)}
    return {"session_key": session, "turns": conversation.Turns([], []), "is_new": True}


@register.inclusion_tag(f"{PARTIALS}/chat.html", takes_context=True)
def agent_chat(
    context: template.Context,
    session: AgentSession | str,
    agent_key: str = "",
    agents: Sequence[str] = (),
) -> dict[str, Any]:
    """Show a conversation and the form that writes to it: ``{% agent_chat session %}``.

    ``agents`` are the keys of the agents to choose from.
    """
    offered = {"agents": agents, "show": "conversation"}
    return {**_log(session), **_composer(session, agent_key), **offered}


@register.inclusion_tag(f"{PARTIALS}/composer.html", takes_context=True)
def agent_composer(
    context: template.Context, session: AgentSession | str, agent_key: str = ""
) -> dict[str, Any]:
    """Show the form that writes to a conversation. The first message creates a new one."""
    return _composer(session, agent_key)


def _composer(session: AgentSession | str, agent_key: str) -> dict[str, Any]:
    key = session.session_key if isinstance(session, AgentSession) else session
    known = session.agent_key if isinstance(session, AgentSession) else ""
    return {"session_key": key, "agent_key": agent_key or known}


@register.simple_tag
def agent_session_facts(session: AgentSession) -> str:
    """Return the agent, tokens and cost of a conversation: ``Support · 2,318 tokens``."""
    used, dollars = conversation.tokens_and_cost(session)
    words = ngettext("%(n)s token", "%(n)s tokens", used) % {"n": agent_number(used)}
    cost = wording.cost(dollars) if dollars else ""
    parts = [wording.in_words(session.agent_key), words if used else "", cost]
    return " · ".join(filter(None, parts))


@register.simple_tag
def agent_run_events(run: AgentRun) -> list[AgentEvent]:
    """Return the run's events that its owner may see: ``{% agent_run_events run as events %}``."""
    return events.events_after(run, 0, limit=MAX_EVENTS, levels=events.readable_levels())


@register.simple_tag
def agent_poll_seconds() -> str:
    """Return the seconds between two polls of an unfinished fragment, for ``hx-trigger``."""
    return f"{settings.POLL_SECONDS:g}"


@register.simple_tag
def agent_can_retry(run: AgentRun) -> bool:
    """Return whether a person may retry a run: it failed, and no run of its session follows."""
    if not run.is_finished or run.status == AgentRun.Status.COMPLETED or run.is_inline:
        return False
    return run.session is None or run.position >= run.session.run_count


@register.filter
def agent_number(value: Any) -> str:
    """Return a number with grouped thousands, in the format of the reader's language."""
    return "" if value is None else number_format(value, use_l10n=True, force_grouping=True)


@register.filter
def agent_output_template(run: AgentRun) -> str:
    """Return the template for an answer. The host's template for the agent takes precedence."""
    own = host_templates.found("agentic_django/output", run.agent_key)
    return own or f"{PARTIALS}/output.html"


@register.filter
def agent_tool_template(call: conversation.ToolCard) -> str:
    """Return the template for a tool call. The host's template for the tool takes precedence."""
    folder = f"{PARTIALS}/tool_calls"
    own = host_templates.found(folder, call.name) if call.name[:1] != "_" else ""
    return own or f"{folder}/_default.html"


@register.filter
def agent_status_words(status: str) -> str:
    """Return the label of a status."""
    return str(AgentRun.Status(status).label)


@register.filter
def agent_status_template(run: AgentRun) -> str:
    """Return the template that describes the status of a run."""
    return f"{PARTIALS}/status/{run.status}.html"


@register.simple_tag(takes_context=True)
def agentic_django_assets(context: template.Context) -> SafeString:
    """Load the style sheet, htmx and the app's scripts. Put the tag in ``<head>``.

    The scripts have the attribute ``nonce`` if the context has ``csp_nonce``.
    """
    nonce = context.get("csp_nonce")
    return format_html(
        '<meta name="htmx-config" content="{}">\n<meta name="agentic-words" content="{}">\n'
        '<link rel="stylesheet" href="{}">\n{}\n{}\n{}',
        HTMX_CONFIG,
        json.dumps({"copy": _("Copy"), "copied": _("Copied")}),
        static("agentic_django/agentic_django.css"),
        htmx_script(nonce=nonce),
        _script(static("agentic_django/agentic_django.js"), nonce),
        _script(static("agentic_django/live.js"), nonce),
    )


def _script(address: str, nonce: Any) -> SafeString:
    if nonce is None:
        return format_html('<script src="{}" defer></script>', address)
    return format_html('<script src="{}" defer nonce="{}"></script>', address, nonce)
