"""Writes to the row of a run, each guarded by the attempt or the status that it expects.

The guarded write is the first query of its transaction. It locks the row, or it fails because the
attempt has lost the run. The attributes in memory are assigned after the query succeeds.
"""

from __future__ import annotations

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
from agentic_django.engine.attempt import Attempt
from agentic_django.engine.events import Event
from agentic_django.engine.run_rows import process_name, run_rows
from agentic_django.engine.transitions import TRANSITIONS
from agentic_django.exceptions import Conflict, StaleAttempt
from agentic_django.models import ACTIVE, FINISHED, AgentRun, database

__all__ = [
    "RunChange",
    "append_while_waiting",
    "change_status",
    "end_attempt",
    "ending_change",
    "fenced",
    "lock_waiting",
    "mark_watched",
    "record_usage",
    "refuse_unless_waiting",
    "renew_leases",
    "update_run",
    "write_changes",
]

Status = AgentRun.Status


@contextmanager
def fenced(*attempts: Attempt, waits: bool = True) -> Iterator[None]:
    """Open one transaction for writes of these attempts.

    If it fails, attributes that were assigned to the runs in memory are restored. With
    ``waits=False``, raises WouldBlock if another thread of an attempt is writing.
    """
    with ExitStack() as stack:
        for attempt in sorted(attempts, key=lambda each: (str(each.run.pk), each.number)):
            if not attempt.lock.acquire(blocking=waits):
                raise WouldBlock
            stack.callback(attempt.lock.release)
            stack.enter_context(attempt.restored_on_error())
        stack.enter_context(transaction.atomic(using=database()))
        yield


def update_run(attempt: Attempt, new_events: Sequence[Event] = (), **columns: Any) -> None:
    """Write columns and events of an attempt's run.

    Call it first in a transaction. Raises StaleAttempt if the attempt has lost the run.
    """
    write_changes([RunChange(attempt, new_events, columns)])


def end_attempt(
    attempt: Attempt, verb: str, new_events: Sequence[Event] = (), **columns: Any
) -> None:
    """Move an attempt's run to the target of a transition, with columns and events.

    Call it first in a transaction. Raises StaleAttempt if the attempt has lost the run.
    """
    write_changes([ending_change(attempt, verb, new_events, **columns)])


@dataclass(slots=True)
class RunChange:
    """Columns and events that an attempt writes to its run."""

    attempt: Attempt
    new_events: Sequence[Event] = ()
    columns: dict[str, Any] = field(default_factory=dict)
    verb: str = "advance"

    @property
    def run(self) -> AgentRun:
        """Return the run that is written."""
        return self.attempt.run

    @property
    def shape(self) -> tuple[Any, ...]:
        """Return a key that is equal for changes that one UPDATE can write together."""
        return (self.attempt.number, *sorted(self.columns))


def ending_change(
    attempt: Attempt, verb: str, new_events: Sequence[Event] = (), **columns: Any
) -> RunChange:
    """Return the change that moves an attempt's run to the target of a transition."""
    target = TRANSITIONS[verb].target
    ended: dict[str, Any] = {
        "status": target,
        "lease_ends_at": None,
        "active_seconds": attempt.active_seconds,
        "activity": "",
    }
    if target in FINISHED:
        ended["finished_at"] = Now()
    return RunChange(attempt, new_events, ended | columns, verb)


def write_changes(changes: Sequence[RunChange], *, waits: bool = True) -> None:
    """Write changes of different runs with their events: all or none.

    Call it first in a transaction. Raises StaleAttempt if an attempt has lost its run. With
    ``waits=False``, also raises it if another transaction has locked a row. The error names any one
    of the runs.
    """
    with fenced(*(each.attempt for each in changes), waits=waits):
        by_shape: dict[Any, list[RunChange]] = {}
        for each in changes:
            each.new_events = events.enabled(each.new_events)
            each.columns["event_count"] = each.run.event_count + len(each.new_events)
            by_shape.setdefault(each.shape, []).append(each)
        for alike in by_shape.values():
            rows = run_rows().running().filter(pk__in=[each.run.pk for each in alike])
            rows = rows.filter(attempt=alike[0].attempt.number)
            columns = {name: _value_for(name, alike) for name in alike[0].columns}
            updated = (rows if waits else rows.skip_locked()).update(**columns, updated_at=Now())
            if updated != len(alike):
                raise StaleAttempt(alike[0].run, alike[0].verb)
        for each in changes:
            each.attempt.assign(each.columns)
        if any(each.new_events for each in changes):
            events.append_for_runs([(each.run, each.new_events) for each in changes])
        concurrency_limits.release([each.run for each in changes if "status" in each.columns])


def _value_for(name: str, alike: list[RunChange]) -> Any:
    """Return a column's value if it is the same for all runs, else a CASE over the runs."""
    first, *others = [each.columns[name] for each in alike]
    # JSON values are not compared, because 1 equals True in Python.
    is_comparable = first is None or isinstance(first, str) or type(first) is int
    is_comparable = is_comparable or hasattr(first, "resolve_expression")
    if all(is_comparable and type(first) is type(each) and first == each for each in others):
        return first
    column: Any = AgentRun._meta.get_field(name)

    def as_expression(value: Any) -> Any:
        is_expression = hasattr(value, "resolve_expression")
        return value if is_expression else models.Value(value, output_field=column)

    branches = (
        models.When(pk=each.run.pk, then=as_expression(each.columns[name])) for each in alike
    )
    chosen = models.Case(*branches, output_field=column)
    if connections[database()].features.requires_casted_case_in_updates:
        return Cast(chosen, output_field=column)
    return chosen


def renew_leases(run_ids: Sequence[Any], seconds: float) -> None:
    """Renew the leases of this process's runs, and add seconds to their active time."""
    rows = run_rows().running().filter(pk__in=run_ids, holder=process_name())
    rows.update(
        lease_ends_at=Now() + timedelta(seconds=settings.LEASE_SECONDS),
        active_seconds=F("active_seconds") + seconds,
    )


def record_usage(run: AgentRun, usage: dict[str, Any]) -> None:
    """Write the usage of a run, in the transaction that ends it."""
    run_rows().filter(pk=run.pk).update(usage=usage)
    run.usage = usage


def lock_waiting(run: AgentRun) -> bool:
    """Lock a waiting run until the transaction ends, and reload it.

    Return False if the run is no longer waiting.
    """
    waiting = run_rows().filter(pk=run.pk, status=Status.WAITING)
    is_waiting = bool(waiting.update(updated_at=Now()))
    run.refresh_from_db()
    return is_waiting


def refuse_unless_waiting(run: AgentRun) -> None:
    """Raise Conflict, which names the run's status, unless the run waits for a decision."""
    if run.status != Status.WAITING:
        raise Conflict(_REFUSED["decide"] % {"status": run.get_status_display()})


def append_while_waiting(run: AgentRun, new_events: Sequence[Event]) -> None:
    """Write events of a run that continues to wait. Call ``lock_waiting`` first."""
    new_events = events.enabled(new_events)
    run_rows().filter(pk=run.pk).update(event_count=F("event_count") + len(new_events))
    run.refresh_from_db()
    events.append_events(run, new_events)


_REFUSED: dict[str, Any] = {
    "decide": _("This run is not waiting for a decision. Its status is %(status)s."),
    "cancel": _("Cannot stop this run: its status is %(status)s."),
    "retry": _("Cannot retry this run: its status is %(status)s."),
}
"""The messages for users, by the verb that the run's status does not allow."""


def change_status(
    run: AgentRun,
    verb: str,
    new_events: Sequence[Event] = (),
    guard: models.Q | None = None,
    **columns: Any,
) -> None:
    """Make a transition of a run from outside its attempt, and reload the run.

    Raises Conflict if the transition does not start from the run's status. With a guard, also
    raises Conflict if the guard does not match, or if another transaction has locked the row.
    """
    step, new_events = TRANSITIONS[verb], events.enabled(new_events)
    columns |= {"status": step.target, "event_count": F("event_count") + len(new_events)}
    movable = run_rows().filter(guard or models.Q(), pk=run.pk, status__in=step.sources)
    if guard is not None:
        movable = movable.skip_locked()
    with transaction.atomic(using=database()):
        if not movable.update(**columns, updated_at=Now()):
            run.refresh_from_db()
            text = _REFUSED.get(verb, f"Cannot {verb} this run: its status is %(status)s.")
            raise Conflict(text % {"status": run.get_status_display()})
        run.refresh_from_db()
        events.append_events(run, new_events)
        concurrency_limits.release([run])


WATCH_SECONDS = 30.0
"""How long a run counts as watched after ``mark_watched``."""


def mark_watched(ids: Collection[Any]) -> None:
    """Mark active runs as watched, so that their partial messages are written often.

    Rows that another transaction has locked are skipped until the next call.
    """
    soon = Now() + timedelta(seconds=WATCH_SECONDS / 2)
    unmarked = models.Q(watched_until__isnull=True) | models.Q(watched_until__lt=soon)
    active = run_rows().filter(unmarked, pk__in=ids, status__in=ACTIVE)
    with transaction.atomic(using=database()):
        active.skip_locked().update(watched_until=Now() + timedelta(seconds=WATCH_SECONDS))
