"""The timeline of a run: its attempts, calls and waits as bars on one time axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from itertools import zip_longest
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from agentic_django.models import AgentEvent, AgentRun, StepCheckpoint, database
from agentic_django.serialization import printable

__all__ = ["Timeline", "TimelineRow", "timeline"]

WIDTH = 1000
"""The length of the axis, in units of the chart."""

MAX_CALLS = 300
"""The number of latest calls that are shown."""

STATUS_EVENTS = (
    "run.started",
    "run.retrying",
    "run.waiting",
    "run.completed",
    "run.failed",
    "run.cancelled",
    "run.timed_out",
)
"""The events that begin and end attempts and waits."""

CALL_EVENTS = ("tool.called", "tool.output", "step.started", "step.completed", "step.failed")
"""The events of calls that have no checkpoint yet."""

Kind = StepCheckpoint.Kind


@dataclass(frozen=True, slots=True)
class TimelineRow:
    """One bar: an attempt, a call within it, or a wait.

    ``kind`` is attempt, model, tool, step, child, approval or wait; ``state`` is done, busy,
    lost, failed, stopped or waiting.
    """

    kind: str
    label: str
    start: datetime
    end: datetime
    state: str = "done"
    note: str = ""
    is_code: bool = False
    x: float = 0.0
    width: float = 0.0
    is_broken: bool = False

    @property
    def seconds(self) -> float:
        """The duration, in seconds."""
        return max((self.end - self.start).total_seconds(), 0.0)

    @property
    def words(self) -> str:
        """The outcome in words, if the duration does not show it."""
        words = {"lost": _("interrupted"), "failed": _("failed"), "stopped": _("stopped")}
        return words.get(self.state, _("running") if self.state == "busy" else "")

    @property
    def is_within(self) -> bool:
        """Whether the bar is part of an attempt."""
        return self.kind not in ("attempt", "wait")


@dataclass(frozen=True)
class Timeline:
    """The rows in order, with positions on the axis. ``left_out`` counts the calls not shown."""

    start: datetime
    rows: Sequence[TimelineRow]
    left_out: int = 0


def timeline(run: AgentRun) -> Timeline:
    """Return the timeline of a run from its events and checkpoints, in two queries."""
    shown_types = (*STATUS_EVENTS, *CALL_EVENTS)
    found = AgentEvent.objects.using(database()).filter(run=run, event_type__in=shown_types)
    events = list(found.order_by("sequence"))
    made = StepCheckpoint.objects.using(database()).filter(run=run).exclude(kind=Kind.STATE)
    columns = ("run_id", "generation", "key", "kind", "name", "attempt", "error")
    recorded = list(made.only(*columns, "started_at", "finished_at").order_by("id"))
    rows = [*_spans(run, events, recorded), *_calls(run, events, recorded[-MAX_CALLS:])]
    rows.sort(key=lambda row: (row.start, row.kind not in ("attempt", "wait"), row.end))
    left_out = max(len(recorded) - MAX_CALLS, 0)
    return Timeline(run.created_at, _with_positions(rows), left_out)


def _spans(
    run: AgentRun, events: Sequence[AgentEvent], recorded: Sequence[StepCheckpoint]
) -> Iterator[TimelineRow]:
    """Yield the attempts of a run and the waits between them, from its status events."""
    changes = [event for event in events if event.event_type in STATUS_EVENTS]
    if not changes or changes[0].created_at - run.created_at > timedelta(seconds=0.5):
        end = changes[0].created_at if changes else run.read_at
        state = "done" if changes else "waiting"
        yield TimelineRow("wait", _("Queued"), run.created_at, end, state)
    for event, following in zip_longest(changes, changes[1:]):
        start, end = event.created_at, following.created_at if following else run.read_at
        state = "done" if following else "waiting"
        match event.event_type:
            case "run.started":
                yield _attempt(run, event, following, recorded)
            case "run.waiting":
                yield TimelineRow("approval", _("Waiting for approval"), start, end, state)
            case "run.retrying" if (end - start).total_seconds() >= 0.05:
                yield TimelineRow("wait", _("Waiting to retry"), start, end, state)


def _attempt(
    run: AgentRun,
    event: AgentEvent,
    following: AgentEvent | None,
    recorded: Sequence[StepCheckpoint],
) -> TimelineRow:
    """Return an attempt, from the event that began it and the next status event."""
    state = "done"
    if following is None:
        state = "busy" if run.is_active else "done"
    elif following.event_type in ("run.retrying", "run.failed", "run.timed_out"):
        cause = "reason" if following.event_type == "run.retrying" else "code"
        state = "lost" if following.payload.get(cause) == "lost" else "failed"
    elif following.event_type == "run.cancelled":
        state = "stopped"
    number = int(event.payload.get("attempt") or 1)
    own = next((row.generation for row in recorded if row.attempt == number), run.generation)
    earlier = [row for row in recorded if row.attempt < number and row.generation == own]
    reused = sum(row.finished_at is not None for row in earlier)
    note = ngettext("%d result reused", "%d results reused", reused) % reused if reused else ""
    label = _("Attempt %(number)d") % {"number": number}
    end = following.created_at if following else run.read_at
    return TimelineRow("attempt", label, event.created_at, end, state, note)


def _calls(
    run: AgentRun, events: Sequence[AgentEvent], recorded: Sequence[StepCheckpoint]
) -> Iterator[TimelineRow]:
    """Yield the calls that have a checkpoint, then those that are running and have only events."""
    for row in recorded:
        is_code = row.kind != Kind.MODEL
        label = printable(row.name) if is_code else _("model")
        end, state = row.finished_at or row.started_at, "failed" if row.error else "done"
        yield TimelineRow(str(row.kind), label, row.started_at, end, state, is_code=is_code)
    if run.status != AgentRun.Status.RUNNING:
        return
    running: dict[Any, AgentEvent] = {}
    for event in events:
        key = event.payload.get("call_id") or event.payload.get("step_name")
        if event.event_type in ("tool.called", "step.started"):
            running[key] = event
        elif event.event_type in CALL_EVENTS:
            running.pop(key, None)
    for event in running.values():
        kind = event.event_type.partition(".")[0]
        name = printable(str(event.payload.get("tool") or event.payload.get("step_name") or ""))
        yield TimelineRow(kind, name, event.created_at, run.read_at, "busy", is_code=True)


def _with_positions(rows: Sequence[TimelineRow]) -> list[TimelineRow]:
    """Return rows with positions. A wait longer than all other time is cut to that length."""
    if not rows:
        return []
    start, end = min(row.start for row in rows), max(row.end for row in rows)
    waits = [row for row in rows if row.kind in ("wait", "approval")]
    rest = (end - start).total_seconds() - sum(row.seconds for row in waits)
    longest = max(rest, 0.001)
    cuts = [(row.end, row.seconds - longest) for row in waits if row.seconds > longest]

    def at(moment: datetime) -> float:
        """Return the seconds from the start to a moment, without the parts that are cut."""
        return (moment - start).total_seconds() - sum(cut for ends, cut in cuts if ends <= moment)

    scale = (WIDTH - 2) / max(at(end), 0.001)
    return [
        replace(
            row,
            x=round(1 + at(row.start) * scale, 2),
            width=round(max((at(row.end) - at(row.start)) * scale, 3.0), 2),
            is_broken=row in waits and row.seconds > longest,
        )
        for row in rows
    ]
