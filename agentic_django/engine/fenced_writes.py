"""What an attempt writes to the run that it holds; fenced by the attempt, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.db import connections, models, transaction
from django.db.models import F
from django.db.models.functions import Cast, Now
from django.utils.translation import gettext_lazy as _

from agentic_django.concurrency.batching import WouldBlock
from agentic_django.conf import settings
from agentic_django.engine import concurrency_limits, events
from agentic_django.engine.events import Event
from agentic_django.engine.transitions import TRANSITIONS, mirror, process_name, run_rows
from agentic_django.exceptions import Conflict, StaleAttempt
from agentic_django.models import ACTIVE, FINISHED, AgentRun, database

__all__ = [
    "RunChange",
    "end_held",
    "ending_change",
    "fenced",
    "record_usage",
    "renew_leases",
    "update_held",
    "write_changes",
]

Status = AgentRun.Status


@contextmanager
def fenced(*held: AgentRun, waits: bool = True) -> Iterator[None]:
    """One transaction of attempts' writes; if it fails, their rows in memory are as before.

    An attempt may write from two threads (``threads.aside``), one at a time. Raises WouldWait if
    it is not to wait for that, and another is at it.
    """
    with ExitStack() as stack:
        for run in sorted(held, key=lambda each: (str(each.pk), each.attempt)):
            if not run.writing.acquire(blocking=waits):
                raise WouldBlock
            stack.callback(run.writing.release)
        before = [(run, dict(vars(run))) for run in held]
        try:
            with transaction.atomic(using=database()):
                yield
        except BaseException:
            for run, columns in before:
                vars(run).update(columns)
            raise


def update_held(run: AgentRun, drafts: Sequence[Event] = (), **changes: Any) -> None:
    """Write to a run that this attempt holds, with the events that tell of it.

    Raises StaleAttempt if the attempt no longer holds the run. Belongs first in a transaction.
    """
    write_changes([RunChange(run, drafts, changes)])


def end_held(run: AgentRun, verb: str, drafts: Sequence[Event] = (), **changes: Any) -> None:
    """Move a run that this attempt holds to where a verb leads, with its events.

    Raises StaleAttempt if the attempt no longer holds the run. Belongs first in a transaction.
    """
    write_changes([ending_change(run, verb, drafts, **changes)])


@dataclass(slots=True)
class RunChange:
    """What an attempt writes to the run that it holds, and the events that tell of it."""

    run: AgentRun
    drafts: Sequence[Event] = ()
    columns: dict[str, Any] = field(default_factory=dict)
    verb: str = "advance"

    @property
    def shape(self) -> tuple[Any, ...]:
        """What it has in common with changes that one statement writes together with it."""
        return (self.run.attempt, *sorted(self.columns))


def ending_change(
    run: AgentRun, verb: str, drafts: Sequence[Event] = (), **columns: Any
) -> RunChange:
    """Return the change that moves a run to where a verb leads."""
    target = TRANSITIONS[verb].target
    ended: dict[str, Any] = {
        "status": target,
        "lease_ends_at": None,
        "active_seconds": run.active_seconds + time.monotonic() - run.began,
        "activity": "",
    }
    if target in FINISHED:
        ended["finished_at"] = Now()
    return RunChange(run, drafts, ended | columns, verb)


def write_changes(changes: Sequence[RunChange], *, waits: bool = True) -> None:
    """Write changes, one for each run, with their events; all or none.

    Raises StaleAttempt if an attempt no longer holds its run or, if it is not to wait for that,
    another transaction is just writing it; of several runs, it names any. Belongs first in a
    transaction.
    """
    with fenced(*(each.run for each in changes), waits=waits):
        for each in changes:
            each.drafts = events.enabled(each.drafts)
            each.columns["event_count"] = each.run.event_count + len(each.drafts)
        for alike in _alike(changes):
            if _update(alike, waits) != len(alike):
                raise StaleAttempt(alike[0].run, alike[0].verb)
        for each in changes:
            mirror(each.run, each.columns)
        if any(each.drafts for each in changes):
            events.append_for_runs([(each.run, each.drafts) for each in changes])
        concurrency_limits.release([each.run for each in changes if "status" in each.columns])


def _alike(changes: Sequence[RunChange]) -> list[list[RunChange]]:
    found: dict[Any, list[RunChange]] = {}
    for each in changes:
        found.setdefault(each.shape, []).append(each)
    return list(found.values())


def _update(alike: list[RunChange], waits: bool) -> int:
    """Write changes of one shape, as far as their attempts hold the runs; returns of how many."""
    ids = [each.run.pk for each in alike]
    held = run_rows().filter(pk__in=ids, status=Status.RUNNING, attempt=alike[0].run.attempt)
    held = held if waits else held.skip_locked()
    columns = {name: _value(name, alike) for name in alike[0].columns}
    return held.update(**columns, updated_at=Now())


def _value(name: str, alike: list[RunChange]) -> Any:
    """Return a column's value if all have the same one, else the expression that chooses."""
    first, *others = [each.columns[name] for each in alike]
    if all(_is_same(first, other) for other in others):
        return first
    column: Any = AgentRun._meta.get_field(name)
    chosen = models.Case(
        *(models.When(pk=each.run.pk, then=_given(each.columns[name], column)) for each in alike),
        output_field=column,
    )
    if connections[database()].features.requires_casted_case_in_updates:
        return Cast(chosen, output_field=column)
    return chosen


def _is_same(one: Any, other: Any) -> bool:
    """Whether two values are written alike; of JSON, whose 1 and True are equal, never."""
    plain = one is None or isinstance(one, str) or hasattr(one, "resolve_expression")
    return (plain or type(one) is int) and type(one) is type(other) and bool(one == other)


def _given(value: Any, column: Any) -> Any:
    is_made = hasattr(value, "resolve_expression")
    return value if is_made else models.Value(value, output_field=column)


def renew_leases(run_ids: Sequence[Any], seconds: float) -> None:
    """Renew the leases that this process holds, after it has worked for so many seconds."""
    mine = run_rows().running().filter(pk__in=run_ids, holder=process_name())
    mine.update(
        lease_ends_at=Now() + timedelta(seconds=settings.LEASE_SECONDS),
        active_seconds=F("active_seconds") + seconds,
    )


def record_usage(run: AgentRun, usage: dict[str, Any]) -> None:
    """Write what a run has used, in the transaction that ends it."""
    run_rows().filter(pk=run.pk).update(usage=usage)
    run.usage = usage


def lock_waiting(run: AgentRun) -> bool:
    """Keep others from writing a waiting run until the transaction ends; reads the row again.

    False if the run does not wait any more.
    """
    waiting = run_rows().filter(pk=run.pk, status=Status.WAITING)
    is_held = bool(waiting.update(updated_at=Now()))
    run.refresh_from_db()
    return is_held


def refuse_unless_waiting(run: AgentRun) -> None:
    """Raise Conflict, which says where the run stands, for a decision that comes too late."""
    if run.status != Status.WAITING:
        raise Conflict(_REFUSED["decide"] % {"status": run.get_status_display()})


def append_while_waiting(run: AgentRun, drafts: Sequence[Event]) -> None:
    """Write events of a waiting run that stays so, behind ``hold_waiting``: nobody performs it."""
    drafts = events.enabled(drafts)
    run_rows().filter(pk=run.pk).update(event_count=F("event_count") + len(drafts))
    run.refresh_from_db()
    events.append_events(run, drafts)


_REFUSED: dict[str, Any] = {
    "decide": _("This run is not waiting for a decision. Its status is %(status)s."),
    "cancel": _("Cannot stop this run: its status is %(status)s."),
    "retry": _("Cannot retry this run: its status is %(status)s."),
}
"""What a person reads whose verb came too late."""


def change_status(
    run: AgentRun,
    verb: str,
    drafts: Sequence[Event] = (),
    guard: models.Q | None = None,
    **changes: Any,
) -> None:
    """Move a run from outside its attempt, whoever holds it; reads the row again.

    Raises Conflict if the run is no longer in a state from which the verb leads. With a guard
    it also does if that does not hold, or if another transaction is just writing the run.
    """
    step, drafts = TRANSITIONS[verb], events.enabled(drafts)
    changes |= {"status": step.target, "event_count": F("event_count") + len(drafts)}
    movable = run_rows().filter(guard or models.Q(), pk=run.pk, status__in=step.sources)
    if guard is not None:
        movable = movable.skip_locked()
    with transaction.atomic(using=database()):
        if not movable.update(**changes, updated_at=Now()):
            run.refresh_from_db()
            text = _REFUSED.get(verb, f"Cannot {verb} this run: its status is %(status)s.")
            raise Conflict(text % {"status": run.get_status_display()})
        run.refresh_from_db()
        events.append_events(run, drafts)
        concurrency_limits.release([run])


WATCH_SECONDS = 30.0
"""For how long a run counts as watched once somebody said so."""


def mark_watched(ids: Collection[Any]) -> None:
    """Note that somebody watches these runs: what their models say is then written often.

    A row that is just being written is left for the next time.
    """
    soon = Now() + timedelta(seconds=WATCH_SECONDS / 2)
    unnoted = models.Q(watched_until__isnull=True) | models.Q(watched_until__lt=soon)
    active = run_rows().filter(unnoted, pk__in=ids, status__in=ACTIVE)
    with transaction.atomic(using=database()):
        active.skip_locked().update(watched_until=Now() + timedelta(seconds=WATCH_SECONDS))
