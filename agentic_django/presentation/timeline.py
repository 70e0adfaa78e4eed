"""When a run did what: attempts, their calls, waits, on one axis; a table and a waterfall."""

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
"""The axis in units of the drawing."""

MAX_CALLS = 300
"""So many of the last calls are shown."""

LIFE = (
    "run.started",
    "run.retrying",
    "run.waiting",
    "run.completed",
    "run.failed",
    "run.cancelled",
    "run.timed_out",
)
"""The events from which attempts and waits are made."""

CALLS = ("tool.called", "tool.output", "step.started", "step.completed", "step.failed")
"""The events that tell of calls that are not recorded yet."""

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
        """How long it took."""
        return max((self.end - self.start).total_seconds(), 0.0)

    @property
    def words(self) -> str:
        """How it ended, where that is not plain from its duration."""
        told = {"lost": _("interrupted"), "failed": _("failed"), "stopped": _("stopped")}
        return told.get(self.state, _("running") if self.state == "busy" else "")

    @property
    def is_within(self) -> bool:
        """Whether it is part of an attempt."""
        return self.kind not in ("attempt", "wait")


@dataclass(frozen=True)
class Timeline:
    """The rows in their order, placed on the axis; ``left_out`` calls are not among them."""

    start: datetime
    rows: Sequence[TimelineRow]
    left_out: int = 0

    @cached_property
    def waited(self) -> float:
        """Seconds in which the run waited for a person."""
        return sum(row.seconds for row in self.rows if row.kind == "approval")


def timeline(run: AgentRun) -> Timeline:
    """Return when a run did what, from its events and what is recorded; two statements."""
    told = _events(run)
    recorded = list(_recorded(run))
    calls, left_out = recorded[-MAX_CALLS:], max(len(recorded) - MAX_CALLS, 0)
    rows = [*_spans(run, told, recorded), *_calls(calls), *_open_calls(run, told, recorded)]
    rows.sort(key=lambda row: (row.start, row.kind not in ("attempt", "wait"), row.end))
    return Timeline(run.created_at, _placed(rows), left_out)


def _events(run: AgentRun) -> list[AgentEvent]:
    rows = AgentEvent.objects.using(database()).filter(run=run, event_type__in=(*LIFE, *CALLS))
    return list(rows.order_by("sequence"))


def _recorded(run: AgentRun) -> Iterator[StepCheckpoint]:
    rows = StepCheckpoint.objects.using(database()).filter(run=run).exclude(kind=Kind.STATE)
    columns = ("run_id", "generation", "key", "kind", "name", "attempt", "error")
    return rows.only(*columns, "started_at", "finished_at").order_by("id").iterator()


# Attempts, and the time between them


def _spans(
    run: AgentRun, told: Sequence[AgentEvent], recorded: Sequence[StepCheckpoint]
) -> Iterator[TimelineRow]:
    life = [event for event in told if event.event_type in LIFE]
    if not life or life[0].created_at - run.created_at > timedelta(seconds=0.5):
        end = life[0].created_at if life else run.read_at
        yield TimelineRow("wait", _("Queued"), run.created_at, end, "done" if life else "waiting")
    for event, following in pairwise([*life, None]):
        if event is not None:
            yield from _span(run, event, following, recorded)


def _span(
    run: AgentRun,
    event: AgentEvent,
    following: AgentEvent | None,
    recorded: Sequence[StepCheckpoint],
) -> Iterator[TimelineRow]:
    """Return what an event of the run's life began, and the next one ended."""
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
    """Return how an attempt ended, by the event after it."""
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
    """Say how many results an attempt found recorded by those before it."""
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
    run: AgentRun, told: Sequence[AgentEvent], recorded: Sequence[StepCheckpoint]
) -> Iterator[TimelineRow]:
    """Return the calls that are under way, which only events tell of."""
    if run.status != AgentRun.Status.RUNNING:
        return
    under_way: dict[Any, AgentEvent] = {}
    for event in told:
        key = event.payload.get("call_id") or event.payload.get("step_name")
        if event.event_type in ("tool.called", "step.started"):
            under_way[key] = event
        elif event.event_type in CALLS:
            under_way.pop(key, None)
    for event in under_way.values():
        kind = event.event_type.partition(".")[0]
        name = printable(str(event.payload.get("tool") or event.payload.get("step_name") or ""))
        yield TimelineRow(kind, name, event.created_at, run.read_at, "busy", is_code=True)


# The axis


def _placed(rows: Sequence[TimelineRow]) -> list[TimelineRow]:
    """Place rows on the axis; a wait longer than all the rest is cut to the length of the rest."""
    if not rows:
        return []
    start, end = min(row.start for row in rows), max(row.end for row in rows)
    waits = [row for row in rows if row.kind in ("wait", "approval")]
    rest = (end - start).total_seconds() - sum(row.seconds for row in waits)
    longest = max(rest, 0.001)
    cuts = [(row.end, row.seconds - longest) for row in waits if row.seconds > longest]

    def at(moment: datetime) -> float:
        """Return the seconds from the start, less what is cut out before a moment."""
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
