"""Enqueues runs after the transaction that made them due has committed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

from django.db import transaction
from django.db.models.functions import Now

from agentic_django.concurrency import pubsub
from agentic_django.engine import concurrency_limits, queues
from agentic_django.engine.run_rows import run_rows
from agentic_django.models import AgentRun, database

__all__ = ["allowed_delay", "enqueue_next", "enqueue_on_commit", "mark_enqueued"]


def allowed_delay(delay: float) -> float:
    """Return a delay in seconds, or 0 if the task backend executes tasks immediately."""
    return 0.0 if queues.executes_immediately() else delay


def enqueue_on_commit(run: AgentRun) -> None:
    """Enqueue a run after the transaction has committed.

    If the queue cannot be reached, the error is logged and the run stays pending. The next sweep
    enqueues it.
    """
    publish = partial(pubsub.publish, pubsub.Topic.RUN_CHANGED, run.pk)
    transaction.on_commit(publish, using=database(), robust=True)
    transaction.on_commit(partial(_enqueue, run), using=database(), robust=True)


def _enqueue(run: AgentRun) -> None:
    result = queues.enqueue(str(run.pk), run.agent_key)
    if result is not None and result.id:
        run.task_id = result.id
        run_rows().filter(pk=run.pk).update(task_id=result.id, enqueued_at=Now())


def enqueue_next(ended: Sequence[AgentRun]) -> None:
    """Enqueue the runs that waited for the sessions or slots of the runs that end now."""
    if not ended:
        return
    due = run_rows().due().exclude(pk__in=[run.pk for run in ended])
    sessions = [run.session_id for run in ended if run.session_id]
    following = list(due.filter(session__in=sessions)) if sessions else []  # One per session.
    if limits := concurrency_limits.limits():
        # Runs whose job found no free slot are no longer in the queue.
        waiting = concurrency_limits.with_free_slot(due.filter(enqueued_at=None)).by_urgency()
        if concurrency_limits.ALL_AGENTS in limits:
            following += waiting[: len(ended)]
        for key, count in Counter(run.agent_key for run in ended).items():
            following += waiting.filter(agent_key=key)[:count]
    for run in {run.pk: run for run in following}.values():
        enqueue_on_commit(run)


def mark_enqueued(run: AgentRun) -> bool:
    """Record that a run is enqueued again. Return False if another process did so first."""
    same = run_rows().pending().filter(pk=run.pk)
    if run.enqueued_at is None:
        same = same.filter(enqueued_at__isnull=True)
    else:  # Not "equal": SQLite compares strings, and stores fewer digits than it compares.
        same = same.filter(enqueued_at__lte=run.enqueued_at)
    return bool(same.skip_locked().update(enqueued_at=Now()))
