"""The Django task that executes a run. Queued jobs refer to it by its path."""

from __future__ import annotations

from agentic_django.concurrency import database_connections
from agentic_django.engine import queues
from agentic_django.worker import executor

__all__ = ["execute"]


@queues.run_task
def execute(run_id: str) -> None:
    """Execute a run, or another run of its queue that is due.

    The job only shows that a run may be due. The database determines which runs are due.
    """
    try:
        executor.execute(run_id)
    finally:
        if not queues.executes_immediately():  # A pool's thread would keep its connection.
            database_connections.close_broken_connections()
    queues.enqueue_deferred()
