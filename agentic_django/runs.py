"""The run's own row: one table of guarded transitions.

A worker's writes are fenced by (key, status running, attempt), and by nothing else, so an
attempt that lost its run changes nothing. A person's verbs are fenced by the status alone.
Nothing here looks first and writes then: the guard is in the write.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any

from django.db import IntegrityError, connections, models, transaction
from django.db.models import F
from django.db.models.functions import Coalesce, Now
from django.utils.translation import gettext_lazy as _

from agentic_django import events, signals, slots, tasks
from agentic_django.conf import settings
from agentic_django.events import Event, EventType
from agentic_django.exceptions import Conflict, RunMoved
from agentic_django.models import ACTIVE, FINISHED, AgentRun, database
from agentic_django.querysets import RunScope

__all__ = [
    "TRANSITIONS",
    "Transition",
    "advance",
    "announce",
    "bill",
    "claim",
    "claim_due",
    "claim_named",
    "finish",
    "hold_waiting",
    "holder",
    "move",
    "note",
    "refuse_unless_waiting",
    "renew",
    "rows",
    "together",
    "watch",
]

Status = AgentRun.Status


@dataclass(frozen=True, slots=True)
class Transition:
    """One verb: from which states, to which, and the event that tells of it."""

    sources: tuple[str, ...]
    target: str
    event: EventType


TRANSITIONS: dict[str, Transition] = {
    "claim": Transition((Status.PENDING,), Status.RUNNING, EventType.RUN_STARTED),
    "complete": Transition((Status.RUNNING,), Status.COMPLETED, EventType.RUN_COMPLETED),
    "fail": Transition((Status.RUNNING,), Status.FAILED, EventType.RUN_FAILED),
    "time_out": Transition((Status.RUNNING,), Status.TIMED_OUT, EventType.RUN_TIMED_OUT),
    "suspend": Transition((Status.RUNNING,), Status.WAITING, EventType.RUN_WAITING),
    "requeue": Transition((Status.RUNNING,), Status.PENDING, EventType.RUN_RETRYING),
    "resume": Transition((Status.WAITING,), Status.PENDING, EventType.RUN_RETRYING),
    "retry": Transition(
        (Status.FAILED, Status.TIMED_OUT, Status.CANCELLED),
        Status.PENDING,
        EventType.RUN_RETRYING,
    ),
    "cancel": Transition(ACTIVE, Status.CANCELLED, EventType.RUN_CANCELLED),
}
"""Every change of status there is."""


def holder() -> str:
    """Return the name of this process among those that hold runs."""
    return f"{socket.gethostname()}:{os.getpid()}"


def rows() -> RunScope:
    """Return the runs, in the database that holds them."""
    return AgentRun.objects.using(database())


def claim(run_id: str) -> AgentRun | None:
    """Take a run for this process: the named one if it is due, else the most urgent that is."""
    return next((run for run in _candidates(run_id) if _take(run)), None)


def _candidates(run_id: str) -> Iterator[AgentRun]:
    named = _whole().filter(pk=run_id).first()
    if named is None:
        return
    if named.status == Status.PENDING and not named.is_inline:
        yield named
        _await_place(named)
    beside = _due_on(tasks.queue_of(named.agent_key))
    yield from beside.exclude(pk=run_id).in_turn()[:3]


def _whole() -> RunScope:
    return rows().select_related("session", "owner").defer("session__digest")


def _await_place(run: AgentRun) -> None:
    """Note that a run's delivery came to nothing: it is sent again when a place is free."""
    if slots.caps():
        rows().pending().filter(pk=run.pk).update(enqueued_at=None)


def _due_on(queue: str) -> RunScope:
    """Return the runs of a queue that can start now."""
    keys, rest = tasks.keys_on(queue)
    mine = models.Q(agent_key__in=keys)
    if rest:
        mine |= ~models.Q(agent_key__in=set(settings.QUEUES) - keys)
    return slots.open_to(_whole().due().filter(mine))


def claim_due(queue: str, most: int) -> list[AgentRun]:
    """Take at most so many runs of a queue that are due, the most urgent first."""
    if slots.caps():
        return [run for run in list(_due_on(queue).in_turn()[:most]) if _take(run)]
    try:
        return _take_all(_due_on(queue), most)
    except IntegrityError:  # Another run of a conversation was claimed at the same moment.
        return [run for run in list(_due_on(queue).in_turn()[:most]) if _take(run)]


def claim_named(run_ids: Sequence[str]) -> list[AgentRun]:
    """Take those of these runs that are due, if no caps have to be looked at for each."""
    if slots.caps():
        return []
    try:
        return _take_all(_whole().due().filter(pk__in=run_ids), len(run_ids))
    except IntegrityError:  # Another run of a conversation was claimed at the same moment.
        return []


def _take_all(due: RunScope, most: int) -> list[AgentRun]:
    """Take runs in one transaction; those that another is just taking are left to it."""
    skip = connections[database()].features.has_select_for_update_skip_locked
    with transaction.atomic(using=database()):
        chosen = list(due.in_turn().select_for_update(skip_locked=skip, of=("self",))[:most])
        if not chosen:
            return []
        mine = rows().pending().filter(pk__in=[run.pk for run in chosen])
        taken = mine.update(
            attempt=F("attempt") + 1, event_count=F("event_count") + 1, **_holding(), **_clock()
        )
        if taken != len(chosen):  # A database without row locks, and another was faster.
            raise IntegrityError
        for run in chosen:
            _hold(run, {"attempt": run.attempt + 1, "event_count": run.event_count + 1})
        events.append_each([(run, [_started(run)]) for run in chosen])
    for run in chosen:
        announce(signals.agent_run_started, run)
    return chosen


def claim_inline(run: AgentRun) -> bool:
    """Take a run that its host performs in this process; False if its conversation is busy."""
    return _take(run, rows().next_in_line().filter(is_inline=True))


def _take(run: AgentRun, due: RunScope | None = None) -> bool:
    run.joined_transaction = transaction.get_connection(database()).in_atomic_block
    try:
        with transaction.atomic(using=database()):
            if not _claimed(run, rows().due() if due is None else due):
                return False
            events.append(run, [_started(run)])
    except IntegrityError:  # Another run of the conversation was claimed at the same moment.
        return False
    announce(signals.agent_run_started, run)
    return True


def _started(run: AgentRun) -> Event:
    return events.draft(EventType.RUN_STARTED, attempt=run.attempt)


def _claimed(run: AgentRun, due: RunScope) -> bool:
    changes = {"attempt": run.attempt + 1, "event_count": run.event_count + 1}
    mine = due.filter(pk=run.pk, attempt=run.attempt)
    if not mine.update(**changes, **_holding(), **_clock()):
        return False
    _hold(run, changes)
    if slots.take(run):
        return True
    transaction.set_rollback(True, using=database())
    return False


def _holding() -> dict[str, Any]:
    return {"status": Status.RUNNING, "holder": holder(), "activity": ""}


def _clock() -> dict[str, Any]:
    return {
        "started_at": Coalesce(F("started_at"), Now()),
        "lease_ends_at": Now() + timedelta(seconds=settings.LEASE_SECONDS),
        "updated_at": Now(),
    }


def _hold(run: AgentRun, changes: dict[str, Any]) -> None:
    _mirror(run, {**changes, **_holding()})
    run.began = time.monotonic()


@contextmanager
def together(run: AgentRun) -> Iterator[None]:
    """One transaction of an attempt's writes; if it fails, its row in memory is as before.

    An attempt may write from two threads (``threads.aside``), one at a time.
    """
    with run.writing:
        before = dict(vars(run))
        try:
            with transaction.atomic(using=database()):
                yield
        except BaseException:
            vars(run).update(before)
            raise


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


WATCH_SECONDS = 30.0
"""For how long a run counts as watched once somebody said so."""


def watch(ids: Collection[Any]) -> None:
    """Note that somebody watches these runs: what their models say is then written often.

    A row that is just being written is left for the next time.
    """
    soon = Now() + timedelta(seconds=WATCH_SECONDS / 2)
    unnoted = models.Q(watched_until__isnull=True) | models.Q(watched_until__lt=soon)
    active = rows().filter(unnoted, pk__in=ids, status__in=ACTIVE)
    with transaction.atomic(using=database()):
        active.unlocked().update(watched_until=Now() + timedelta(seconds=WATCH_SECONDS))


def advance(run: AgentRun, drafts: Sequence[Event] = (), **changes: Any) -> None:
    """Write to a run that this attempt holds, with the events that tell of it.

    Raises RunMoved if the attempt no longer holds the run. Belongs first in a transaction.
    """
    _fenced(run, "advance", events.wanted(drafts), changes)


def finish(run: AgentRun, verb: str, drafts: Sequence[Event] = (), **changes: Any) -> None:
    """Move a run that this attempt holds to where a verb leads, with its events.

    Raises RunMoved if the attempt no longer holds the run. Belongs first in a transaction.
    """
    target = TRANSITIONS[verb].target
    spent = run.active_seconds + time.monotonic() - run.began
    ending: dict[str, Any] = {
        "status": target,
        "lease_ends_at": None,
        "active_seconds": spent,
        "activity": "",
    }
    if target in FINISHED:
        ending["finished_at"] = Now()
    ending |= changes
    _fenced(run, verb, events.wanted(drafts), ending)
    slots.release(run)


def _fenced(run: AgentRun, verb: str, drafts: list[Event], changes: dict[str, Any]) -> None:
    held = rows().filter(pk=run.pk, status=Status.RUNNING, attempt=run.attempt)
    with together(run):
        changes["event_count"] = run.event_count + len(drafts)
        if not held.update(**changes, updated_at=Now()):
            raise RunMoved(run, verb)
        _mirror(run, changes)
        if drafts:
            events.append(run, drafts)


def hold_waiting(run: AgentRun) -> bool:
    """Keep others from writing a waiting run until the transaction ends; reads the row again.

    False if the run does not wait any more.
    """
    waiting = rows().filter(pk=run.pk, status=Status.WAITING)
    is_held = bool(waiting.update(updated_at=Now()))
    run.refresh_from_db()
    return is_held


def refuse_unless_waiting(run: AgentRun) -> None:
    """Raise Conflict, which says where the run stands, for a decision that comes too late."""
    if run.status != Status.WAITING:
        raise Conflict(_REFUSED["decide"] % {"status": run.get_status_display()})


def note(run: AgentRun, drafts: Sequence[Event]) -> None:
    """Write events of a waiting run that stays so, behind ``hold_waiting``: nobody performs it."""
    drafts = events.wanted(drafts)
    rows().filter(pk=run.pk).update(event_count=F("event_count") + len(drafts))
    run.refresh_from_db()
    events.append(run, drafts)


_REFUSED: dict[str, Any] = {
    "decide": _("This run does not wait for a decision: it is %(status)s now."),
    "cancel": _("Cannot cancel this run: it is %(status)s now."),
    "retry": _("Cannot retry this run: it is %(status)s now."),
}
"""What a person reads whose verb came too late."""


def move(
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
    step, drafts = TRANSITIONS[verb], events.wanted(drafts)
    changes |= {"status": step.target, "event_count": F("event_count") + len(drafts)}
    movable = rows().filter(guard or models.Q(), pk=run.pk, status__in=step.sources)
    if guard is not None:
        movable = movable.unlocked()
    with transaction.atomic(using=database()):
        if not movable.update(**changes, updated_at=Now()):
            run.refresh_from_db()
            text = _REFUSED.get(verb, f"Cannot {verb} this run: it is %(status)s now.")
            raise Conflict(text % {"status": run.get_status_display()})
        run.refresh_from_db()
        events.append(run, drafts)
        slots.release(run)


def _mirror(run: AgentRun, changes: dict[str, Any]) -> None:
    for name, value in changes.items():
        if not hasattr(value, "resolve_expression"):
            setattr(run, name, value)


def announce(signal: Any, run: AgentRun, **kwargs: Any) -> None:
    """Send a signal about a run once the transaction is committed."""
    send_it = partial(signals.announce, signal, AgentRun, run=run, **kwargs)
    transaction.on_commit(send_it, using=database(), robust=True)
