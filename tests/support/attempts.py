"""Executes attempts of runs one at a time, without a queue: a test says when."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from django.db import connections
from django.db.models.functions import Now

from agentic_django.concurrency import event_loop, executors
from agentic_django.concurrency.process_state import process
from agentic_django.engine import claims, journal_entries, recovery
from agentic_django.engine.attempt import Attempt
from agentic_django.engine.events import Event
from agentic_django.engine.journal_entries import CallResult, Entry
from agentic_django.models import AgentRun, StepCheckpoint
from agentic_django.worker import executor

__all__ = [
    "AWAY",
    "attempt",
    "claim",
    "finish",
    "lose",
    "numbered",
    "payloads",
    "record",
    "recorded",
    "sharing",
]

AWAY = ConnectionError("The provider cannot be reached.")
"""An error that ends an attempt, after which another one starts."""


def attempt(run: AgentRun) -> AgentRun:
    """Execute one attempt of a run, and reload the run."""
    executor.execute(str(run.pk))
    run.refresh_from_db()
    return run


def finish(run: AgentRun) -> AgentRun:
    """Execute attempts of a run until it ends or waits, and reload it."""
    for _ in range(12):
        if attempt(run).is_finished or run.status == "waiting":
            return run
    raise AssertionError(f"The run does not end: {run.status}.")


def claim(run: AgentRun) -> Attempt:
    """Claim a run for this process, and return its attempt."""
    claimed = claims.claim_run(str(run.pk))
    assert claimed is not None
    assert claimed.run == run
    return claimed


def record(
    attempt: Attempt,
    result: CallResult,
    new_events: Sequence[Event] = (),
    replaces: StepCheckpoint | None = None,
) -> StepCheckpoint:
    """Record one result, as an attempt does."""
    return journal_entries.write_entries([Entry.of(attempt, result, new_events, replaces)])[0]


def lose(run: AgentRun) -> AgentRun:
    """Claim a run for a process that dies at once, and let its lease end."""
    pending = AgentRun.objects.filter(pk=run.pk, status="pending")
    assert pending.update(status="running", attempt=run.attempt + 1, lease_ends_at=Now())
    recovery.sweep()
    run.refresh_from_db()
    return run


def recorded(run: AgentRun) -> list[tuple[str, str]]:
    """Return kind and name of each recorded result, in order."""
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
def sharing(*, records: int, host_code: int) -> Iterator[executors.ThreadPools]:
    """Let the runs of this process share threads, as in a worker with many slots."""
    with patch.object(process.get(event_loop.EventLoop), "pools", None):
        pools = event_loop.use_thread_pools(records=records, host_code=host_code)
        try:
            yield pools
        finally:
            for pool, count in ((pools.records, records), (pools.host_code, host_code)):
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
