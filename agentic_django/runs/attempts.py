"""What an attempt writes to the run that it holds; fenced by the attempt, and nothing else."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.db import connections, models, transaction
from django.db.models import F
from django.db.models.functions import Cast, Now

from agentic_django import events, slots
from agentic_django.batches import WouldWait
from agentic_django.conf import settings
from agentic_django.events import Event
from agentic_django.exceptions import RunMoved
from agentic_django.models import FINISHED, AgentRun, database
from agentic_django.runs.transitions import TRANSITIONS, holder, mirror, rows

__all__ = ["Change", "advance", "bill", "change", "ending", "finish", "renew", "together"]

Status = AgentRun.Status


@contextmanager
def together(*held: AgentRun, waits: bool = True) -> Iterator[None]:
    """One transaction of attempts' writes; if it fails, their rows in memory are as before.

    An attempt may write from two threads (``threads.aside``), one at a time. Raises WouldWait if
    it is not to wait for that, and another is at it.
    """
    with ExitStack() as stack:
        for run in sorted(held, key=lambda each: (str(each.pk), each.attempt)):
            if not run.writing.acquire(blocking=waits):
                raise WouldWait
            stack.callback(run.writing.release)
        before = [(run, dict(vars(run))) for run in held]
        try:
            with transaction.atomic(using=database()):
                yield
        except BaseException:
            for run, columns in before:
                vars(run).update(columns)
            raise


def advance(run: AgentRun, drafts: Sequence[Event] = (), **changes: Any) -> None:
    """Write to a run that this attempt holds, with the events that tell of it.

    Raises RunMoved if the attempt no longer holds the run. Belongs first in a transaction.
    """
    change([Change(run, drafts, changes)])


def finish(run: AgentRun, verb: str, drafts: Sequence[Event] = (), **changes: Any) -> None:
    """Move a run that this attempt holds to where a verb leads, with its events.

    Raises RunMoved if the attempt no longer holds the run. Belongs first in a transaction.
    """
    change([ending(run, verb, drafts, **changes)])


@dataclass(slots=True)
class Change:
    """What an attempt writes to the run that it holds, and the events that tell of it."""

    run: AgentRun
    drafts: Sequence[Event] = ()
    columns: dict[str, Any] = field(default_factory=dict)
    verb: str = "advance"

    @property
    def shape(self) -> tuple[Any, ...]:
        """What it has in common with changes that one statement writes together with it."""
        return (self.run.attempt, *sorted(self.columns))


def ending(run: AgentRun, verb: str, drafts: Sequence[Event] = (), **columns: Any) -> Change:
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
    return Change(run, drafts, ended | columns, verb)


def change(changes: Sequence[Change], *, waits: bool = True) -> None:
    """Write changes, one for each run, with their events; all or none.

    Raises RunMoved if an attempt no longer holds its run or, if it is not to wait for that, another
    transaction is just writing it; of several runs, it names any. Belongs first in a transaction.
    """
    with together(*(each.run for each in changes), waits=waits):
        for each in changes:
            each.drafts = events.wanted(each.drafts)
            each.columns["event_count"] = each.run.event_count + len(each.drafts)
        for alike in _alike(changes):
            if _update(alike, waits) != len(alike):
                raise RunMoved(alike[0].run, alike[0].verb)
        for each in changes:
            mirror(each.run, each.columns)
        if any(each.drafts for each in changes):
            events.append_each([(each.run, each.drafts) for each in changes])
        slots.release([each.run for each in changes if "status" in each.columns])


def _alike(changes: Sequence[Change]) -> list[list[Change]]:
    found: dict[Any, list[Change]] = {}
    for each in changes:
        found.setdefault(each.shape, []).append(each)
    return list(found.values())


def _update(alike: list[Change], waits: bool) -> int:
    """Write changes of one shape, as far as their attempts hold the runs; returns of how many."""
    ids = [each.run.pk for each in alike]
    held = rows().filter(pk__in=ids, status=Status.RUNNING, attempt=alike[0].run.attempt)
    held = held if waits else held.unlocked()
    columns = {name: _value(name, alike) for name in alike[0].columns}
    return held.update(**columns, updated_at=Now())


def _value(name: str, alike: list[Change]) -> Any:
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


def renew(run_ids: Sequence[Any], seconds: float) -> None:
    """Renew the leases that this process holds, after it has worked for so many seconds."""
    mine = rows().running().filter(pk__in=run_ids, holder=holder())
    mine.update(
        lease_ends_at=Now() + timedelta(seconds=settings.LEASE_SECONDS),
        active_seconds=F("active_seconds") + seconds,
    )


def bill(run: AgentRun, usage: dict[str, Any]) -> None:
    """Write what a run has used, in the transaction that ends it."""
    rows().filter(pk=run.pk).update(usage=usage)
    run.usage = usage
