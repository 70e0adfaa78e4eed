"""Limits the number of running runs with slots, exactly, across processes and machines.

A running run holds one row of ``RunSlot`` for each limit that applies to it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from django.db.models import Count, QuerySet

from agentic_django.conf import settings
from agentic_django.models import AgentRun, RunSlot, database
from agentic_django.models.choices import Status
from agentic_django.models.querysets import RunQuerySet

__all__ = ["ALL_AGENTS", "acquire", "full_keys", "limits", "release", "with_free_slot"]

ALL_AGENTS = "*"
"""The key of the limit that applies to all agents together."""


def limits() -> Mapping[str, int]:
    """Return the limits by agent key (``ALL_AGENTS`` for all agents). Empty if no limit is set."""
    limit = settings.CONCURRENCY_LIMIT
    if limit is None:
        return {}
    return {ALL_AGENTS: limit} if isinstance(limit, int) else limit


def acquire(run: AgentRun) -> bool:
    """Acquire the slots that a run needs, in the transaction of its claim.

    Return False if a limit is reached. The caller then rolls back, which releases the slots that
    were already acquired. Each slot is a row with a unique number. If two claims insert the same
    number, one succeeds and the other tries the next number.
    """
    caps = limits()
    for key in (ALL_AGENTS, run.agent_key):
        if key not in caps or _insert_free_slot(run, key, caps[key]):
            continue
        # Runs that ended while no limit was set may have left slots.
        slots = _slots().filter(key=key)
        deleted = slots.exclude(run__status=Status.RUNNING).delete()[0]
        deleted += slots.filter(run=run).delete()[0]
        if not deleted or not _insert_free_slot(run, key, caps[key]):
            return False
    return True


def _insert_free_slot(run: AgentRun, key: str, limit: int) -> bool:
    used = set(_slots().filter(key=key).values_list("number", flat=True))
    free = [number for number in range(1, limit + 1) if number not in used]
    random.shuffle(free)  # Concurrent claims should try different numbers.
    for number in free:
        _slots().bulk_create([RunSlot(run=run, key=key, number=number)], ignore_conflicts=True)
        if _slots().filter(run=run, key=key, number=number).exists():
            return True
    return False


def release(ended: Sequence[AgentRun]) -> None:
    """Release the slots of runs, in the transaction that ends their attempts."""
    if ended and limits():
        _slots().filter(run__in=ended).delete()


def full_keys() -> set[str]:
    """Return the keys of the limits that are reached now."""
    caps = limits()
    if not caps:
        return set()
    used = _slots().filter(run__status=Status.RUNNING).order_by().values_list("key")
    counts = dict(used.annotate(count=Count("pk")))
    return {key for key, limit in caps.items() if counts.get(key, 0) >= limit}


def with_free_slot(due: RunQuerySet) -> RunQuerySet:
    """Return the runs whose limits are not reached."""
    full = full_keys()
    if ALL_AGENTS in full:
        return due.none()
    return due.exclude(agent_key__in=full) if full else due


def _slots() -> QuerySet[RunSlot]:
    return RunSlot.objects.using(database())
