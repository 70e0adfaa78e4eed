"""Taking runs: each by one attempt, and one of a conversation at a time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from django.db import IntegrityError, connections, models, transaction
from django.db.models import F
from django.db.models.functions import Coalesce, Now

from agentic_django import signals
from agentic_django.conf import settings
from agentic_django.engine import concurrency_limits, events, queues
from agentic_django.engine.events import Event, EventType
from agentic_django.engine.transitions import mirror, process_name, run_rows, send_signal_on_commit
from agentic_django.models import AgentRun, database
from agentic_django.models.querysets import RunQuerySet

__all__ = ["claim_due", "claim_inline", "claim_run"]

Status = AgentRun.Status


def claim_run(run_id: str) -> AgentRun | None:
    """Take a run for this process: the named one if it is due, else the most urgent that is."""
    return next((run for run in _candidates(run_id) if _take(run)), None)


def _candidates(run_id: str) -> Iterator[AgentRun]:
    named = _whole().filter(pk=run_id).first()
    if named is None:
        return
    if named.status == Status.PENDING and not named.is_inline:
        yield named
        _await_place(named)
    beside = _due_on(queues.queue_for_agent(named.agent_key))
    yield from beside.exclude(pk=run_id).by_urgency()[:3]


def _whole() -> RunQuerySet:
    return run_rows().select_related("session", "owner").defer("session__compacted_items")


def _await_place(run: AgentRun) -> None:
    """Note that a run's delivery came to nothing: it is sent again when a place is free."""
    if concurrency_limits.limits():
        run_rows().pending().filter(pk=run.pk).update(enqueued_at=None)


def _due_on(queue: str) -> RunQuerySet:
    """Return the runs of a queue that can start now."""
    keys, rest = queues.agents_on_queue(queue)
    mine = models.Q(agent_key__in=keys)
    if rest:
        mine |= ~models.Q(agent_key__in=set(settings.QUEUES) - keys)
    return concurrency_limits.with_free_slot(_whole().due().filter(mine))


def claim_due(queue: str, most: int) -> list[AgentRun]:
    """Take at most so many runs of a queue that are due, the most urgent first."""
    if concurrency_limits.limits():
        return [run for run in list(_due_on(queue).by_urgency()[:most]) if _take(run)]
    try:
        return _take_all(_due_on(queue), most)
    except IntegrityError:  # Another run of a conversation was claimed at the same moment.
        return [run for run in list(_due_on(queue).by_urgency()[:most]) if _take(run)]


def _take_all(due: RunQuerySet, most: int) -> list[AgentRun]:
    """Take runs in one transaction; those that another is just taking are left to it."""
    skip = connections[database()].features.has_select_for_update_skip_locked
    with transaction.atomic(using=database()):
        chosen = list(due.by_urgency().select_for_update(skip_locked=skip, of=("self",))[:most])
        if not chosen:
            return []
        mine = run_rows().pending().filter(pk__in=[run.pk for run in chosen])
        taken = mine.update(
            attempt=F("attempt") + 1, event_count=F("event_count") + 1, **_holding(), **_clock()
        )
        if taken != len(chosen):  # A database without row locks, and another was faster.
            raise IntegrityError
        for run in chosen:
            _hold(run, {"attempt": run.attempt + 1, "event_count": run.event_count + 1})
        events.append_for_runs([(run, [_started(run)]) for run in chosen])
    for run in chosen:
        send_signal_on_commit(signals.agent_run_started, run)
    return chosen


def claim_inline(run: AgentRun) -> bool:
    """Take a run that its host performs in this process; False if its conversation is busy."""
    return _take(run, run_rows().startable().filter(is_inline=True))


def _take(run: AgentRun, due: RunQuerySet | None = None) -> bool:
    run.joined_transaction = transaction.get_connection(database()).in_atomic_block
    try:
        with transaction.atomic(using=database()):
            if not _claimed(run, run_rows().due() if due is None else due):
                return False
            events.append_events(run, [_started(run)])
    except IntegrityError:  # Another run of the conversation was claimed at the same moment.
        return False
    send_signal_on_commit(signals.agent_run_started, run)
    return True


def _started(run: AgentRun) -> Event:
    return events.new_event(EventType.RUN_STARTED, attempt=run.attempt)


def _claimed(run: AgentRun, due: RunQuerySet) -> bool:
    changes = {"attempt": run.attempt + 1, "event_count": run.event_count + 1}
    mine = due.filter(pk=run.pk, attempt=run.attempt)
    if not mine.update(**changes, **_holding(), **_clock()):
        return False
    _hold(run, changes)
    if concurrency_limits.acquire(run):
        return True
    transaction.set_rollback(True, using=database())
    return False


def _holding() -> dict[str, Any]:
    return {"status": Status.RUNNING, "holder": process_name(), "activity": ""}


def _clock() -> dict[str, Any]:
    return {
        "started_at": Coalesce(F("started_at"), Now()),
        "lease_ends_at": Now() + timedelta(seconds=settings.LEASE_SECONDS),
        "updated_at": Now(),
    }


def _hold(run: AgentRun, changes: dict[str, Any]) -> None:
    mirror(run, {**changes, **_holding()})
    run.began = time.monotonic()
