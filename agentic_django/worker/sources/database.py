"""Takes runs from the table of runs itself: no other server is needed."""

from __future__ import annotations

import threading
from concurrent.futures import Future
from functools import partial
from typing import Any

from django.db import Error, connections

from agentic_django.concurrency import event_loop
from agentic_django.conf import settings
from agentic_django.engine import claims, concurrency_limits
from agentic_django.models import AgentRun
from agentic_django.signals import logger
from agentic_django.worker import backend, executor
from agentic_django.worker.slots import WorkerState

__all__ = ["DatabaseSource"]

_BATCH = 20
"""At most so many runs are claimed in one transaction."""

_PATIENCE = 5.0
"""Seconds between attempts to reach a database that is away."""


class DatabaseSource:
    """Claims runs as soon as they are due: when told of one, and each poll interval."""

    def __init__(self, duty: WorkerState) -> None:
        self.duty = duty
        self._listener = Listener(duty)

    def work(self) -> None:
        """See ``duty.Source``."""
        if connections[settings.DATABASE].vendor == "postgresql":
            self._listener.start()
        while not self.duty.is_ending:
            backend.arrivals.clear()
            wanted = self.duty.slots.take(_BATCH)
            was_alone = self.duty.slots.busy == wanted
            claimed = self._claim(wanted) if wanted else []
            for run in claimed:
                self._carry(run)
            self.duty.slots.give_back(wanted - len(claimed))
            if self.duty.is_burst and wanted and not claimed and was_alone:
                return  # Nothing ran that might have sent more when it ended.
            if len(claimed) < wanted:
                self._rest()

    def _claim(self, most: int) -> list[AgentRun]:
        try:
            return event_loop.run_recording(claims.claim_due, self.duty.queue, most)
        except Error as error:
            logger.warning("Cannot claim runs: %s", error)
            self.duty.ending.wait(_PATIENCE)
            return []

    def _carry(self, run: AgentRun) -> None:
        future = event_loop.start_on_loop(partial(executor.run_attempt, run))
        future.add_done_callback(self._ended)

    def _ended(self, future: Future[None]) -> None:
        self.duty.slots.give_back()
        if concurrency_limits.limits():  # What had no place may have one now.
            backend.arrivals.set()
        error = None if future.cancelled() else future.exception()
        if error is not None:
            logger.error("An attempt could not be carried to its end", exc_info=error)

    def _rest(self) -> None:
        backend.arrivals.wait(0.05 if self.duty.is_burst else self.duty.poll_seconds)

    def beat(self) -> None:
        """See ``duty.Source``: nobody else is told."""

    def close(self) -> None:
        """See ``duty.Source``."""
        self._listener.stop()


class Listener:
    """A thread that hears PostgreSQL tell of new runs, on a connection of its own.

    If it cannot (a pooler stands between, say), the worker finds them when it looks.
    """

    def __init__(self, duty: WorkerState) -> None:
        self.duty = duty
        self._stopped = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Start to listen."""
        self._thread = threading.Thread(target=self._run, name="agentic-listen", daemon=True)
        self._thread.start()

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
                    backend.arrivals.set()  # Of what was told before, nothing is heard.
                    self._hear(cursor.connection)
            except Error as error:
                logger.warning("Cannot hear of new runs, only look for them: %s", error)
                self._stopped.wait(_PATIENCE)
            finally:
                connections.close_all()

    def _hear(self, connection: Any) -> None:
        while not self._stopped.is_set():
            for told in connection.notifies(timeout=1.0, stop_after=1):
                if told.payload == self.duty.queue:
                    backend.arrivals.set()
