"""Hands runs to the queue, once the transaction that made them due is committed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

from django.db import transaction
from django.db.models.functions import Now

from agentic_django.concurrency import pubsub
from agentic_django.engine import concurrency_limits, queues
from agentic_django.engine.transitions import run_rows
from agentic_django.models import AgentRun, database
from agentic_django.models.querysets import RunQuerySet

__all__ = ["allowed_delay", "enqueue_next", "enqueue_on_commit", "mark_enqueued"]


def allowed_delay(delay: float) -> float:
    """Return the delay that the backend allows: one that executes at once cannot wait."""
    return 0.0 if queues.executes_immediately() else delay


def enqueue_on_commit(run: AgentRun) -> None:
    """Hand a run to the queue once the transaction is committed.

    If the queue cannot be reached, that is logged and the run stays pending; the sweep for
    lost runs sends it again.
    """
    publish = partial(pubsub.publish, pubsub.Topic.RUN_CHANGED, run.pk)
    transaction.on_commit(publish, using=database(), robust=True)
    transaction.on_commit(partial(_send, run), using=database(), robust=True)


def _send(run: AgentRun) -> None:
    result = queues.enqueue(str(run.pk), run.agent_key)
    if result is not None and result.id:
        run.task_id = result.id
        run_rows().filter(pk=run.pk).update(task_id=result.id, enqueued_at=Now())


def enqueue_next(ended: Sequence[AgentRun]) -> None:
    """Send what could not start while these runs held their conversations or their places."""
    if not ended:
        return
    waiting = run_rows().due().exclude(pk__in=[run.pk for run in ended])
    talks = [run.session_id for run in ended if run.session_id]
    following = list(waiting.filter(session__in=talks)) if talks else []  # One of each is due.
    if limits := concurrency_limits.limits():
        refused = concurrency_limits.with_free_slot(waiting.filter(enqueued_at=None))
        following += _first(refused, len(ended)) if concurrency_limits.ALL_AGENTS in limits else []
        for key, count in Counter(run.agent_key for run in ended).items():
            following += _first(refused.filter(agent_key=key), count)
    for each in {one.pk: one for one in following}.values():
        enqueue_on_commit(each)


def _first(waiting: RunQuerySet, count: int) -> list[AgentRun]:
    return list(waiting.by_urgency()[:count])


def mark_enqueued(run: AgentRun) -> bool:
    """Note that a run which the queue has lost is sent again; False if another was faster."""
    same = run_rows().pending().filter(pk=run.pk)
    if run.enqueued_at is None:
        same = same.filter(enqueued_at__isnull=True)
    else:  # Not "equal": SQLite compares texts, and writes fewer digits than it is asked for.
        same = same.filter(enqueued_at__lte=run.enqueued_at)
    return bool(same.skip_locked().update(enqueued_at=Now()))
