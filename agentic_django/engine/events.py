"""Defines the types of events and their visibility, and appends and reads events."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.db import models, transaction

from agentic_django import signals
from agentic_django.concurrency import pubsub
from agentic_django.conf import settings
from agentic_django.models import AgentEvent, AgentRun, Visibility, database
from agentic_django.serialization import is_storable, to_jsonable

__all__ = [
    "EVENT_KINDS",
    "Event",
    "EventKind",
    "EventType",
    "append_events",
    "events_after",
    "new_event",
]


class EventType(models.TextChoices):
    """The types of events that the app itself writes."""

    RUN_STARTED = "run.started"
    RUN_RETRYING = "run.retrying"
    RUN_WAITING = "run.waiting"
    RUN_COMPLETED = "run.completed"
    RUN_FAILED = "run.failed"
    RUN_CANCELLED = "run.cancelled"
    RUN_TIMED_OUT = "run.timed_out"
    AGENT_UPDATED = "agent.updated"
    MESSAGE = "message"
    REASONING = "reasoning"
    TOOL_CALLED = "tool.called"
    TOOL_OUTPUT = "tool.output"
    STEP_STARTED = "step.started"
    STEP_COMPLETED = "step.completed"
    STEP_FAILED = "step.failed"
    STEP_RETRYING = "step.retrying"
    STEP_SKIPPED = "step.skipped"
    PROGRESS_UPDATE = "progress.update"
    APPROVAL_REQUESTED = "approval.requested"
    APPROVAL_DECIDED = "approval.decided"
    LOG = "log"
    ERROR = "error"


@dataclass(frozen=True, slots=True)
class EventKind:
    """The payload's fields and the default visibility of one type of event."""

    visibility: Visibility
    fields: tuple[str, ...]


_STEP = ("step_name", "step_index", "total_steps")
_USER, _DEBUG, _INTERNAL = Visibility.USER, Visibility.DEBUG, Visibility.INTERNAL

EVENT_KINDS: dict[str, EventKind] = {
    EventType.RUN_STARTED: EventKind(_USER, ("attempt",)),
    EventType.RUN_RETRYING: EventKind(_USER, ("attempt", "reason", "delay_seconds")),
    EventType.RUN_WAITING: EventKind(_USER, ("reason",)),
    EventType.RUN_COMPLETED: EventKind(_USER, ("output",)),
    EventType.RUN_FAILED: EventKind(_USER, ("error", "code")),
    EventType.RUN_CANCELLED: EventKind(_USER, ("by", "by_owner")),
    EventType.RUN_TIMED_OUT: EventKind(_USER, ("error", "code")),
    EventType.AGENT_UPDATED: EventKind(_DEBUG, ("agent",)),
    EventType.MESSAGE: EventKind(_USER, ("text", "agent")),
    EventType.REASONING: EventKind(_DEBUG, ("summary", "agent")),
    EventType.TOOL_CALLED: EventKind(_USER, ("call_id", "tool", "arguments", "agent")),
    EventType.TOOL_OUTPUT: EventKind(_USER, ("call_id", "tool", "output", "duration_seconds")),
    EventType.STEP_STARTED: EventKind(_USER, (*_STEP, "attempt", "max_attempts", "description")),
    EventType.STEP_COMPLETED: EventKind(_USER, (*_STEP, "result", "duration_seconds")),
    EventType.STEP_FAILED: EventKind(_USER, (*_STEP, "error", "code", "attempts")),
    EventType.STEP_RETRYING: EventKind(
        _USER, (*_STEP, "attempt", "max_attempts", "error", "code", "retry_delay")
    ),
    EventType.STEP_SKIPPED: EventKind(_USER, (*_STEP, "reason")),
    EventType.PROGRESS_UPDATE: EventKind(_USER, (*_STEP, "progress_percent", "description")),
    EventType.APPROVAL_REQUESTED: EventKind(_USER, ("approval_id", "call_id", "tool", "arguments")),
    EventType.APPROVAL_DECIDED: EventKind(
        _USER, ("approval_id", "call_id", "tool", "arguments", "decision", "by", "reason")
    ),
    EventType.LOG: EventKind(_DEBUG, ("message", "level")),
    EventType.ERROR: EventKind(_DEBUG, ("error", "type")),
}
"""The payload's fields and the default visibility, by event type. Other types are internal."""


@dataclass(frozen=True, slots=True)
class Event:
    """An event that has not been written."""

    event_type: str
    payload: dict[str, Any]
    visibility: str


_LONGEST_TYPE = 64


def new_event(event_type: str, visibility: str | None = None, /, **payload: Any) -> Event:
    """Return an event to append. The default visibility is that of its type."""
    seen_by = str(visibility or default_visibility(event_type))
    if seen_by not in Visibility.values:
        allowed = ", ".join(Visibility.values)
        raise ValueError(f"An event's visibility is one of {allowed}, not {seen_by!r}.")
    if not 0 < len(event_type) <= _LONGEST_TYPE or not is_storable(event_type):
        raise ValueError(
            f"An event's type has 1 to {_LONGEST_TYPE} characters that a database keeps; "
            f"{event_type!r:.80} has not."
        )
    return Event(str(event_type), to_jsonable(payload, "payload"), seen_by)


def default_visibility(event_type: str) -> str:
    """Return the visibility of a type: from the setting, else the type's default, else internal.

    An invalid value in the setting counts as internal. A system check reports it.
    """
    kind = EVENT_KINDS.get(event_type)
    default = kind.visibility if kind else Visibility.INTERNAL
    configured = settings.EVENT_VISIBILITY.get(str(event_type), default)
    return configured if configured in Visibility.values else Visibility.INTERNAL


def shows_messages() -> bool:
    """Whether users see messages of the model before the run ends."""
    return settings.ENABLE_EVENTS and default_visibility(EventType.MESSAGE) == Visibility.USER


def readable_levels(*, staff: bool = False, asked: str = Visibility.USER) -> tuple[str, ...]:
    """Return the visibilities of events that a user may read.

    Owners may read ``user`` events, and ``debug`` events if ``SHOW_DEBUG_EVENTS`` is set. Staff may
    request ``debug`` events. Raises PermissionError if another user requests them.
    """
    if asked != Visibility.USER and not (staff or settings.SHOW_DEBUG_EVENTS):
        raise PermissionError("Only staff may read debug events.")
    if asked != Visibility.USER or settings.SHOW_DEBUG_EVENTS:
        return (Visibility.USER, Visibility.DEBUG)
    return (Visibility.USER,)


def enabled(new_events: Sequence[Event]) -> list[Event]:
    """Return the events to write: all, or only a run's status events without ``ENABLE_EVENTS``."""
    if settings.ENABLE_EVENTS:
        return list(new_events)
    return [event for event in new_events if event.event_type.startswith("run.")]


def append_events(run: AgentRun, new_events: Sequence[Event]) -> None:
    """Write events whose numbers the caller has reserved by increasing ``run.event_count``.

    Call this in the transaction of the change that the events describe, after the guarded write
    that increases the run's counter. Signals are sent on commit.
    """
    append_for_runs([(run, new_events)])


def append_for_runs(added: Sequence[tuple[AgentRun, Sequence[Event]]]) -> None:
    """Write the events of several runs, as ``append_events`` does for one."""
    rows = [
        AgentEvent(
            run=run,
            sequence=sequence,
            event_type=event.event_type,
            visibility=event.visibility,
            payload=event.payload,
        )
        for run, new_events in added
        for sequence, event in enumerate(new_events, run.event_count - len(new_events) + 1)
    ]
    AgentEvent.objects.using(database()).bulk_create(rows)
    for run, _ in added:
        publish = partial(pubsub.publish, pubsub.Topic.RUN_CHANGED, run.pk)
        transaction.on_commit(publish, using=database(), robust=True)
    for row in rows:
        send = partial(signals.announce, signals.agent_run_event, AgentEvent, run=row.run)
        event = {"sequence": row.sequence, "event_type": row.event_type, "payload": row.payload}
        transaction.on_commit(partial(send, event=row, **event), using=database(), robust=True)


def events_after(
    run: AgentRun, sequence: int, *, limit: int, levels: Sequence[str]
) -> list[AgentEvent]:
    """Return at most ``limit`` events after a sequence number, with one of these visibilities."""
    later = AgentEvent.objects.using(database()).filter(
        run=run, sequence__gt=sequence, visibility__in=levels
    )
    return list(later.order_by("sequence")[:limit])
