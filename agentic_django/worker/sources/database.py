"""PostgreSQL notifies the worker of new runs; on other databases the worker polls."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

from django.db import Error, connections

from agentic_django.conf import settings
from agentic_django.signals import logger
from agentic_django.worker import backend

__all__ = ["DatabaseNotifications"]

_PATIENCE = 5.0
"""Seconds between attempts to reach a database that is away."""


class DatabaseNotifications:
    """A thread that listens for new runs of a queue, on a database connection of its own.

    If notifications do not arrive (for example, because a connection pooler blocks them), the
    worker finds new runs at the poll interval.
    """

    is_suspended = False

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start to listen, if the database is a PostgreSQL."""
        if connections[settings.DATABASE].vendor == "postgresql":
            self._thread = threading.Thread(target=self._run, name="agentic-listen", daemon=True)
            self._thread.start()

    def claimed(self, task_ids: Sequence[str]) -> None:
        """Do nothing: a run's row is its own task."""

    def stop(self) -> None:
        """Stop to listen, within about a second."""
        self._stopped.set()
        if self._thread is not None:
            self._thread.join(3)

    def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                with connections[settings.DATABASE].cursor() as cursor:
                    cursor.execute(f"LISTEN {backend.CHANNEL}")
                    backend.arrivals.set()  # Earlier notifications have not arrived here.
                    self._listen(cursor.connection)
            except Error as error:
                logger.warning("Cannot listen for new runs, only poll: %s", error)
                self._stopped.wait(_PATIENCE)
            finally:
                connections.close_all()

    def _listen(self, connection: Any) -> None:
        while not self._stopped.is_set():
            for notification in connection.notifies(timeout=1.0, stop_after=1):
                if notification.payload == self.queue:
                    backend.arrivals.set()
