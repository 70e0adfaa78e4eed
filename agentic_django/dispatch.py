"""Hands runs to the queue, once the transaction that made them due is committed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

from django.db import transaction
from django.db.models.functions import Now

from agentic_django import slots, tasks, wakeup
from agentic_django.models import AgentRun, database
from agentic_django.querysets import RunScope
from agentic_django.runs import rows

__all__ = ["send", "send_next", "soonest", "take_up"]


def soonest(delay: float) -> float:
    """Return the delay that the backend allows: one that executes at once cannot wait."""
    return 0.0 if tasks.executes_at_once() else delay


def send(run: AgentRun) -> None:
    """Hand a run to the queue once the transaction is committed.

    If the queue cannot be reached, that is logged and the run stays pending; the sweep for
    lost runs sends it again.
    """
    transaction.on_commit(partial(wakeup.tell, run.pk), using=database(), robust=True)
    transaction.on_commit(partial(_send, run), using=database(), robust=True)


def _send(run: AgentRun) -> None:
    result = tasks.send(str(run.pk), run.agent_key)
    if result is not None and result.id:
        run.task_id = result.id
        rows().filter(pk=run.pk).update(task_id=result.id, enqueued_at=Now())


def send_next(ended: Sequence[AgentRun]) -> None:
    """Send what could not start while these runs held their conversations or their places."""
    if not ended:
        return
    waiting = rows().due().exclude(pk__in=[run.pk for run in ended])
    talks = [run.session_id for run in ended if run.session_id]
    following = list(waiting.filter(session__in=talks)) if talks else []  # One of each is due.
    if limits := slots.caps():
        refused = slots.open_to(waiting.filter(enqueued_at=None))
        following += _first(refused, len(ended)) if slots.ALL in limits else []
        for key, count in Counter(run.agent_key for run in ended).items():
            following += _first(refused.filter(agent_key=key), count)
    for each in {one.pk: one for one in following}.values():
        send(each)


def _first(waiting: RunScope, count: int) -> list[AgentRun]:
    return list(waiting.in_turn()[:count])


def take_up(run: AgentRun) -> bool:
    """Note that a run which the queue has lost is sent again; False if another was faster."""
    same = rows().pending().filter(pk=run.pk)
    if run.enqueued_at is None:
        same = same.filter(enqueued_at__isnull=True)
    else:  # Not "equal": SQLite compares texts, and writes fewer digits than it is asked for.
        same = same.filter(enqueued_at__lte=run.enqueued_at)
    return bool(same.unlocked().update(enqueued_at=Now()))
