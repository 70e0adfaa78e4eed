"""The places that a cap on running runs allows, exact across processes and machines."""

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
"""The key of the places that all agents share."""


def limits() -> Mapping[str, int]:
    """Return how many runs may be running at once, by agent key; ``ALL`` is for all together."""
    limit = settings.CONCURRENCY_LIMIT
    if limit is None:
        return {}
    return {ALL_AGENTS: limit} if isinstance(limit, int) else limit


def acquire(run: AgentRun) -> bool:
    """Take a free place for a run, in the claim's transaction; False if all are taken.

    A place is a row with a unique number. Where two claims want the same number, the database
    lets one insert it, and the other looks for the next. What was taken before one that is not
    free is given back with the transaction.
    """
    caps = limits()
    wanted = [key for key in (ALL_AGENTS, run.agent_key) if key in caps]
    return all(_take_one(run, key, caps[key]) for key in wanted)


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
    if left and limits():
        _held().filter(run__in=left).delete()


def full_keys() -> set[str]:
    """Return the keys whose places are all taken now."""
    caps = limits()
    if not caps:
        return set()
    held = _held().filter(run__status=Status.RUNNING).order_by().values_list("key")
    counts = dict(held.annotate(count=Count("pk")))
    return {key for key, limit in caps.items() if counts.get(key, 0) >= limit}


def with_free_slot(due: RunQuerySet) -> RunQuerySet:
    """Return those of the runs whose agent has a place; a full one holds up nobody else's."""
    taken = full_keys()
    return due.none() if ALL_AGENTS in taken else due.exclude(agent_key__in=taken) if taken else due


def _held() -> QuerySet[RunSlot]:
    return RunSlot.objects.using(database())
