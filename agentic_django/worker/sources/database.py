"""Wakes the claim loop when a run is enqueued with ``RowBackend``.

Processes notify each other through PostgreSQL or Redis. Without these, the worker polls.
"""

from __future__ import annotations

from collections.abc import Sequence

from agentic_django.concurrency.process_state import process
from agentic_django.concurrency.pubsub import Subscriber, Topic
from agentic_django.concurrency.pubsub_transports import transport
from agentic_django.worker.backend import RunMayBeDue

__all__ = ["DatabaseNotifications"]

_STOP_SECONDS = 3.0


class DatabaseNotifications:
    """Subscribes to the runs that are enqueued on a queue."""

    is_suspended = False

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self._subscriber = Subscriber(Topic.RUN_ENQUEUED, self._receive)

    def start(self) -> None:
        """Start waking the claim loop, if processes notify each other."""
        if transport() != "poll":
            self._subscriber.start()

    def claimed(self, task_ids: Sequence[str]) -> None:
        """Do nothing, because ``RowBackend`` stores no tasks that could be removed."""

    def stop(self) -> None:
        """Stop waking the claim loop."""
        self._subscriber.stop(_STOP_SECONDS)

    def _receive(self, queues: set[str]) -> None:
        if not queues or self.queue in queues:  # Empty: some may have been missed.
            process.get(RunMayBeDue).set()
