"""The timeline of a run: its attempts, calls and waits as bars on one time axis."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import cached_property
from itertools import pairwise
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
"""The events of calls, for those that have no checkpoint yet."""

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
        """The end of the bar in words, if the duration does not show it."""
        words = {"lost": _("interrupted"), "failed": _("failed"), "stopped": _("stopped")}
        return words.get(self.state, _("running") if self.state == "busy" else "")

    @property
    def is_within(self) -> bool:
        """Whether the bar is part of an attempt."""
        return self.kind not in ("attempt", "wait")


@dataclass(frozen=True)
class Timeline:
    """The rows in order, with positions on the axis; ``left_out`` counts calls not shown."""

    start: datetime
    rows: Sequence[TimelineRow]
    left_out: int = 0

    @cached_property
    def waited(self) -> float:
        """The seconds for which the run waited for a person."""
        return sum(row.seconds for row in self.rows if row.kind == "approval")


def timeline(run: AgentRun) -> Timeline:
    """Return the timeline of a run from its events and checkpoints, in two statements."""
    events = _events(run)
    recorded = list(_recorded(run))
    calls, left_out = recorded[-MAX_CALLS:], max(len(recorded) - MAX_CALLS, 0)
    rows = [*_spans(run, events, recorded), *_calls(calls), *_open_calls(run, events, recorded)]
    rows.sort(key=lambda row: (row.start, row.kind not in ("attempt", "wait"), row.end))
    return Timeline(run.created_at, _with_positions(rows), left_out)


def _events(run: AgentRun) -> list[AgentEvent]:
    rows = AgentEvent.objects.using(database()).filter(
        run=run, event_type__in=(*STATUS_EVENTS, *CALL_EVENTS)
    )
    return list(rows.order_by("sequence"))


def _recorded(run: AgentRun) -> Iterator[StepCheckpoint]:
    rows = StepCheckpoint.objects.using(database()).filter(run=run).exclude(kind=Kind.STATE)
    columns = ("run_id", "generation", "key", "kind", "name", "attempt", "error")
    return rows.only(*columns, "started_at", "finished_at").order_by("id").iterator()


# Attempts, and the time between them


def _spans(
    run: AgentRun, events: Sequence[AgentEvent], recorded: Sequence[StepCheckpoint]
) -> Iterator[TimelineRow]:
    changes = [event for event in events if event.event_type in STATUS_EVENTS]
    if not changes or changes[0].created_at - run.created_at > timedelta(seconds=0.5):
        end = changes[0].created_at if changes else run.read_at
        yield TimelineRow(
            "wait", _("Queued"), run.created_at, end, "done" if changes else "waiting"
        )
    for event, following in pairwise([*changes, None]):
        if event is not None:
            yield from _span(run, event, following, recorded)


def _span(
    run: AgentRun,
    event: AgentEvent,
    following: AgentEvent | None,
    recorded: Sequence[StepCheckpoint],
) -> Iterator[TimelineRow]:
    """Yield the attempt or wait between two status events."""
    end = following.created_at if following else run.read_at
    match event.event_type:
        case "run.started":
            number = int(event.payload.get("attempt") or 1)
            label = _("Attempt %(number)d") % {"number": number}
            state = _ending(run, following)
            note = _reused(run, number, recorded)
            yield TimelineRow("attempt", label, event.created_at, end, state, note)
        case "run.waiting":
            state = "done" if following else "waiting"
            yield TimelineRow("approval", _("Waiting for approval"), event.created_at, end, state)
        case "run.retrying" if (end - event.created_at).total_seconds() >= 0.05:
            state = "done" if following else "waiting"
            yield TimelineRow("wait", _("Waiting to retry"), event.created_at, end, state)


def _ending(run: AgentRun, following: AgentEvent | None) -> str:
    """Return the state of an attempt, by the status event after it."""
    if following is None:
        return "busy" if run.is_active else "done"
    match following.event_type:
        case "run.retrying":
            return "lost" if following.payload.get("reason") == "lost" else "failed"
        case "run.failed" if following.payload.get("code") == "lost":
            return "lost"
        case "run.failed" | "run.timed_out":
            return "failed"
        case "run.cancelled":
            return "stopped"
    return "done"


def _reused(run: AgentRun, number: int, recorded: Sequence[StepCheckpoint]) -> str:
    """Return a note on the results that an attempt reused from earlier attempts."""
    own = next((row.generation for row in recorded if row.attempt == number), run.generation)
    earlier = [row for row in recorded if row.attempt < number and row.generation == own]
    found = sum(row.finished_at is not None for row in earlier)
    return ngettext("%d result reused", "%d results reused", found) % found if found else ""


# Calls


def _calls(recorded: Sequence[StepCheckpoint]) -> Iterator[TimelineRow]:
    for row in recorded:
        state = "failed" if row.error else "done"
        label = _("model") if row.kind == Kind.MODEL else printable(row.name)
        end = row.finished_at or row.started_at
        is_code = row.kind != Kind.MODEL
        yield TimelineRow(str(row.kind), label, row.started_at, end, state, is_code=is_code)


def _open_calls(
    run: AgentRun, events: Sequence[AgentEvent], recorded: Sequence[StepCheckpoint]
) -> Iterator[TimelineRow]:
    """Yield the calls that are running, which have events but no checkpoint."""
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


# The axis


def _with_positions(rows: Sequence[TimelineRow]) -> list[TimelineRow]:
    """Return rows with positions. A wait longer than everything else is cut to the length of it."""
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
