"""Attempts of runs, one at a time, with no queue to start them: a test says when."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from django.db import connections
from django.db.models.functions import Now

from agentic_django.concurrency import event_loop
from agentic_django.concurrency.process_state import process
from agentic_django.engine import recovery
from agentic_django.models import AgentRun
from agentic_django.worker import executor

__all__ = ["AWAY", "attempt", "finish", "lose", "numbered", "payloads", "recorded", "sharing"]

AWAY = ConnectionError("The provider cannot be reached.")
"""What ends an attempt so that another may begin."""


def attempt(run: AgentRun) -> AgentRun:
    """Carry a run through one attempt, and read it again."""
    executor.execute(str(run.pk))
    run.refresh_from_db()
    return run


def finish(run: AgentRun) -> AgentRun:
    """Carry a run to its end, or to where it waits, over as many attempts as that takes."""
    for _ in range(12):
        if attempt(run).is_finished or run.status == "waiting":
            return run
    raise AssertionError(f"The run does not end: {run.status}.")


def lose(run: AgentRun) -> AgentRun:
    """Claim a run for a process that is gone at once, and let its lease end."""
    held = AgentRun.objects.filter(pk=run.pk, status="pending")
    assert held.update(status="running", attempt=run.attempt + 1, lease_ends_at=Now())
    recovery.sweep()
    run.refresh_from_db()
    return run


def recorded(run: AgentRun) -> list[tuple[str, str]]:
    """Return kind and name of all that is recorded, in order."""
    return list(run.checkpoints.order_by("id").values_list("kind", "name"))


def payloads(run: AgentRun, kind: str) -> list[Any]:
    """Return the payloads of a run's events of one type, in order."""
    rows = run.events.filter(event_type=kind).order_by("sequence")
    return list(rows.values_list("payload", flat=True))


def numbered(run: AgentRun) -> list[str]:
    """Return the types of a run's events in order; their numbers have no gaps."""
    run.refresh_from_db()
    rows = list(run.events.order_by("sequence").values_list("sequence", "event_type"))
    assert [number for number, _ in rows] == list(range(1, run.event_count + 1))
    return [kind for _, kind in rows]


@contextmanager
def sharing(*, records: int, work: int) -> Iterator[event_loop.ThreadPools]:
    """Let this process's runs share threads, as in a worker with many slots."""
    with patch.object(process.get(event_loop.EventLoop), "pools", None):
        pools = event_loop.use_pools(records=records, work=work)
        try:
            yield pools
        finally:
            for pool, count in ((pools.records, records), (pools.work, work)):
                _close(pool, count)


def _close(pool: ThreadPoolExecutor, count: int) -> None:
    """End a pool's threads, each of which closes its connections."""
    together = threading.Barrier(count)

    def close() -> None:
        together.wait(10)
        connections.close_all()

    for future in [pool.submit(close) for _ in range(count)]:
        future.result(20)
    pool.shutdown()
