"""The places that a cap on running runs allows, exact across processes and machines."""

from __future__ import annotations

from django.db.models import QuerySet

from agentic_django.conf import settings
from agentic_django.models import AgentRun, RunSlot, database
from agentic_django.states import Status

__all__ = ["release", "take"]


def take(run: AgentRun) -> bool:
    """Take a free place for a run, in the claim's transaction; False if all are taken.

    A place is a row with a unique number. Where two claims want the same number, the database
    lets one insert it, and the other looks for the next.
    """
    limit = settings.CONCURRENCY_LIMIT
    if limit is None:
        return True
    # A row may be left from before the limit was lifted for a while.
    _held().exclude(run__status=Status.RUNNING).delete()
    _held().filter(run=run).delete()
    return any(_insert(run, number) for number in _free(limit))


def release(run: AgentRun) -> None:
    """Give a run's place back, in the transaction that ends its attempt."""
    if settings.CONCURRENCY_LIMIT is not None:
        _held().filter(run=run).delete()


def _held() -> QuerySet[RunSlot]:
    return RunSlot.objects.using(database())


def _free(limit: int) -> list[int]:
    taken = set(_held().values_list("number", flat=True))
    return [number for number in range(1, limit + 1) if number not in taken]


def _insert(run: AgentRun, number: int) -> bool:
    slots = _held()
    slots.bulk_create([RunSlot(run=run, number=number)], ignore_conflicts=True)
    return slots.filter(run=run, number=number).exists()
