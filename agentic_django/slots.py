"""The places that a cap on running runs allows, exact across processes and machines."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence

from django.db.models import Count, QuerySet

from agentic_django.conf import settings
from agentic_django.models import AgentRun, RunSlot, database
from agentic_django.querysets import RunScope
from agentic_django.states import Status

__all__ = ["ALL", "caps", "full", "open_to", "release", "take"]

ALL = "*"
"""The key of the places that all agents share."""


def caps() -> Mapping[str, int]:
    """Return how many runs may be running at once, by agent key; ``ALL`` is for all together."""
    limit = settings.CONCURRENCY_LIMIT
    if limit is None:
        return {}
    return {ALL: limit} if isinstance(limit, int) else limit


def take(run: AgentRun) -> bool:
    """Take a free place for a run, in the claim's transaction; False if all are taken.

    A place is a row with a unique number. Where two claims want the same number, the database
    lets one insert it, and the other looks for the next. What was taken before one that is not
    free is given back with the transaction.
    """
    limits = caps()
    wanted = [key for key in (ALL, run.agent_key) if key in limits]
    return all(_take_one(run, key, limits[key]) for key in wanted)


def _take_one(run: AgentRun, key: str, limit: int) -> bool:
    if _insert_any(run, key, limit):
        return True
    # Rows may be left from before the limit was lifted for a while.
    stale = _held().filter(key=key)
    count, _ = stale.exclude(run__status=Status.RUNNING).delete()
    count += stale.filter(run=run).delete()[0]
    return bool(count) and _insert_any(run, key, limit)


def _insert_any(run: AgentRun, key: str, limit: int) -> bool:
    return any(_insert(run, key, number) for number in _free(key, limit))


def _free(key: str, limit: int) -> list[int]:
    """Return the free numbers in any order: claims at the same time are to try different ones."""
    taken = set(_held().filter(key=key).values_list("number", flat=True))
    free = [number for number in range(1, limit + 1) if number not in taken]
    random.shuffle(free)
    return free


def _insert(run: AgentRun, key: str, number: int) -> bool:
    slots = _held()
    slots.bulk_create([RunSlot(run=run, key=key, number=number)], ignore_conflicts=True)
    return slots.filter(run=run, key=key, number=number).exists()


def release(left: Sequence[AgentRun]) -> None:
    """Give runs' places back, in the transaction that ends their attempts."""
    if left and caps():
        _held().filter(run__in=left).delete()


def full() -> set[str]:
    """Return the keys whose places are all taken now."""
    limits = caps()
    if not limits:
        return set()
    held = _held().filter(run__status=Status.RUNNING).order_by().values_list("key")
    counts = dict(held.annotate(count=Count("pk")))
    return {key for key, limit in limits.items() if counts.get(key, 0) >= limit}


def open_to(due: RunScope) -> RunScope:
    """Return those of the runs whose agent has a place; a full one holds up nobody else's."""
    taken = full()
    return due.none() if ALL in taken else due.exclude(agent_key__in=taken) if taken else due


def _held() -> QuerySet[RunSlot]:
    return RunSlot.objects.using(database())
