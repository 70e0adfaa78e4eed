"""Claims due runs for this process.

Only one attempt holds a run, and a session runs one at a time. A claim increments the run's
``attempt`` in one guarded UPDATE. If several processes claim a run at the same moment, one
succeeds.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import timedelta
from typing import Any

from django.db import IntegrityError, models, transaction
from django.db.models import F
from django.db.models.functions import Coalesce, Now

from agentic_django import signals
from agentic_django.conf import settings
from agentic_django.engine import concurrency_limits, events, queues
from agentic_django.engine.attempt import Attempt
from agentic_django.engine.events import Event, EventType
from agentic_django.engine.run_rows import process_name, run_rows, send_signal_on_commit
from agentic_django.models import AgentRun, database
from agentic_django.models.querysets import RunQuerySet, skip_locked_rows

__all__ = ["claim_due", "claim_inline", "claim_run"]


def claim_run(run_id: str) -> Attempt | None:
    """Claim the run with this id if it is due. Otherwise claim its queue's most urgent due run."""
    named = _runs_with_relations().filter(pk=run_id).first()
    if named is None:
        return None
    if named.status == AgentRun.Status.PENDING and not named.is_inline:
        if (attempt := next(_claim_each([named]), None)) is not None:
            return attempt
        if concurrency_limits.limits():  # The job is used up: enqueue when a slot is free.
            run_rows().pending().filter(pk=run_id).update(enqueued_at=None)
    others = _due_on(queues.queue_for_agent(named.agent_key)).exclude(pk=run_id)
    return next(_claim_each(others.by_urgency()[:3]), None)


def claim_due(queue: str, most: int) -> list[Attempt]:
    """Claim at most ``most`` due runs of a queue, the most urgent first."""
    if not concurrency_limits.limits():
        try:
            return _claim_batch(_due_on(queue), most)
        except IntegrityError:  # Another run of a session was claimed at the same moment.
            pass
    return list(_claim_each(list(_due_on(queue).by_urgency()[:most])))


def claim_inline(run: AgentRun, *, joined_transaction: bool) -> Attempt | None:
    """Claim a run that its host executes in this process. Return None if the session is busy."""
    due = run_rows().startable().filter(is_inline=True)
    return _claim(run, due, joined_transaction=joined_transaction)


def _runs_with_relations() -> RunQuerySet:
    return run_rows().select_related("session", "owner").defer("session__compacted_items")


def _due_on(queue: str) -> RunQuerySet:
    """Return the runs of a queue that can start now."""
    keys, rest = queues.agents_on_queue(queue)
    on_queue = models.Q(agent_key__in=keys)
    if rest:
        on_queue |= ~models.Q(agent_key__in=set(settings.QUEUES) - keys)
    return concurrency_limits.with_free_slot(_runs_with_relations().due().filter(on_queue))


def _claim_each(runs: Iterable[AgentRun]) -> Iterator[Attempt]:
    """Claim runs one by one as the caller iterates; skip those that cannot be claimed."""
    for run in runs:
        attempt = _claim(run, run_rows().due(), joined_transaction=_is_in_transaction())
        if attempt is not None:
            yield attempt


def _is_in_transaction() -> bool:
    return bool(transaction.get_connection(database()).in_atomic_block)


def _claim(run: AgentRun, due: RunQuerySet, *, joined_transaction: bool) -> Attempt | None:
    """Claim one run if it is due and a concurrency slot is free."""
    columns = {"attempt": run.attempt + 1, "event_count": run.event_count + 1, **_claimed_columns()}
    try:
        with transaction.atomic(using=database()):
            claimable = due.filter(pk=run.pk, attempt=run.attempt)
            if not claimable.update(**columns, **_claim_times()):
                return None
            if not concurrency_limits.acquire(run):
                transaction.set_rollback(True, using=database())
                return None
            _assign(run, columns)
            events.append_events(run, [_started_event(run)])
    except IntegrityError:  # Another run of the session was claimed at the same moment.
        return None
    send_signal_on_commit(signals.agent_run_started, run)
    return Attempt(run, joined_transaction=joined_transaction)


def _claim_batch(due: RunQuerySet, most: int) -> list[Attempt]:
    """Claim runs in one transaction; skip those that another transaction has locked."""
    joined_transaction = _is_in_transaction()
    with transaction.atomic(using=database()):
        runs = list(skip_locked_rows(due.by_urgency(), of=("self",))[:most])
        if not runs:
            return []
        raised = {"attempt": F("attempt") + 1, "event_count": F("event_count") + 1}
        claimable = run_rows().pending().filter(pk__in=[run.pk for run in runs])
        count = claimable.update(**raised, **_claimed_columns(), **_claim_times())
        if count != len(runs):  # Without row locks, another process may have claimed it first.
            raise IntegrityError
        for run in runs:
            numbers = {"attempt": run.attempt + 1, "event_count": run.event_count + 1}
            _assign(run, {**numbers, **_claimed_columns()})
        events.append_for_runs([(run, [_started_event(run)]) for run in runs])
    for run in runs:
        send_signal_on_commit(signals.agent_run_started, run)
    return [Attempt(run, joined_transaction=joined_transaction) for run in runs]


def _claimed_columns() -> dict[str, Any]:
    return {"status": AgentRun.Status.RUNNING, "holder": process_name(), "activity": ""}


def _claim_times() -> dict[str, Any]:
    return {
        "started_at": Coalesce(F("started_at"), Now()),
        "lease_ends_at": Now() + timedelta(seconds=settings.LEASE_SECONDS),
        "updated_at": Now(),
    }


def _assign(run: AgentRun, columns: dict[str, Any]) -> None:
    for name, value in columns.items():
        setattr(run, name, value)


def _started_event(run: AgentRun) -> Event:
    return events.new_event(EventType.RUN_STARTED, attempt=run.attempt)
