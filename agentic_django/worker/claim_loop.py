"""Claims due runs from the database, in batches, for the free slots of a worker process.

The loop is the same for all task backends. ``worker.sources`` wakes it when a run may be due.
"""

from __future__ import annotations

from concurrent.futures import Future
from functools import partial

from django.db import Error

from agentic_django.concurrency import event_loop
from agentic_django.concurrency.process_state import process
from agentic_django.engine import claims, concurrency_limits
from agentic_django.engine.attempt import Attempt
from agentic_django.signals import logger
from agentic_django.worker import executor
from agentic_django.worker.backend import RunMayBeDue
from agentic_django.worker.slots import RunNotifications, WorkerState

__all__ = ["ClaimLoop"]

_BATCH = 20
"""The largest number of runs that one transaction claims."""

_PATIENCE = 5.0
"""Seconds to wait after the database could not be reached."""


class ClaimLoop:
    """Claims runs when it is woken, and at each poll interval, and starts their attempts."""

    def __init__(self, duty: WorkerState, notifications: RunNotifications) -> None:
        self.duty = duty
        self.notifications = notifications

    def work(self) -> None:
        """Claim runs until the process is to end; in a burst, until no run is due or running."""
        self.notifications.start()
        may_be_due = process.get(RunMayBeDue)
        while not self.duty.is_ending:
            if self.notifications.is_suspended:
                self.duty.ending.wait(1)
                continue
            may_be_due.clear()
            wanted = self.duty.slots.take(_BATCH)
            was_idle = self.duty.slots.busy == wanted
            claimed = self._claim(wanted) if wanted else []
            for attempt in claimed:
                self._start(attempt)
            self.duty.slots.give_back(wanted - len(claimed))
            task_ids = [each.run.task_id for each in claimed if each.run.task_id]
            self.notifications.claimed(task_ids)
            if self.duty.is_burst and wanted and not claimed and was_idle:
                return  # No attempt was running that could have enqueued another run.
            if len(claimed) < wanted:
                may_be_due.wait(0.05 if self.duty.is_burst else self.duty.poll_seconds)

    def close(self) -> None:
        """Stop the notifications; call it after all attempts have ended."""
        self.notifications.stop()

    def _claim(self, most: int) -> list[Attempt]:
        try:
            return event_loop.run_in_records_pool(claims.claim_due, self.duty.queue, most)
        except Error as error:
            logger.warning("Cannot claim runs: %s", error)
            self.duty.ending.wait(_PATIENCE)
            return []

    def _start(self, attempt: Attempt) -> None:
        future = event_loop.start_on_loop(partial(executor.run_attempt, attempt))
        future.add_done_callback(self._on_end)

    def _on_end(self, future: Future[None]) -> None:
        self.duty.slots.give_back()
        if concurrency_limits.limits():  # A run that the limit kept waiting may be due now.
            process.get(RunMayBeDue).set()
        error = None if future.cancelled() else future.exception()
        if error is not None:
            logger.error("An attempt could not be executed to its end", exc_info=error)
