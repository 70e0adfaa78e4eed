"""Claims due runs from the database, in batches, for the free slots of a worker process.

The loop is the same for all task backends. ``worker.sources`` wakes it when a run may be due.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from functools import partial
from typing import Protocol

from django.db import Error

from agentic_django.concurrency import event_loop
from agentic_django.concurrency.process_state import process
from agentic_django.engine import claims, concurrency_limits
from agentic_django.engine.attempt import Attempt
from agentic_django.signals import logger
from agentic_django.worker import executor
from agentic_django.worker.backend import RunMayBeDue
from agentic_django.worker.slots import WorkerState

__all__ = ["ClaimLoop", "RunNotifications"]

_BATCH = 20
"""The largest number of runs that one transaction claims."""

_SLOT_SECONDS = 1.0
"""The longest wait for a free slot. Then the loop checks whether the process must stop."""

_BURST_POLL_SECONDS = 0.05
"""The poll interval of a burst, so that it ends soon after its last run."""

_ERROR_SECONDS = 5.0
"""The pause after a claim failed because the database could not be reached."""


class RunNotifications(Protocol):
    """Wakes the claim loop when a run may be due, by setting ``backend.RunMayBeDue``."""

    @property
    def is_suspended(self) -> bool:
        """Whether an operator has suspended the workers of the queue."""
        ...

    def start(self) -> None:
        """Start waking the claim loop."""
        ...

    def claimed(self, task_ids: Sequence[str]) -> None:
        """Handle claimed runs. ``task_ids`` are the ids of the tasks enqueued for them."""
        ...

    def stop(self) -> None:
        """Stop waking the claim loop."""
        ...


class ClaimLoop:
    """Claims runs when it is woken and at each poll interval, and starts their attempts."""

    def __init__(self, state: WorkerState, notifications: RunNotifications) -> None:
        self.state = state
        self.notifications = notifications

    def run(self) -> None:
        """Claim runs until the process drains; in a burst, until no run is due or running."""
        self.notifications.start()
        may_be_due, slots = process.get(RunMayBeDue), self.state.slots
        poll_seconds = _BURST_POLL_SECONDS if self.state.is_burst else self.state.poll_seconds
        while not self.state.draining.is_set():
            if self.notifications.is_suspended:
                self.state.draining.wait(1)
                continue
            may_be_due.clear()
            acquired = slots.acquire(_BATCH, timeout=_SLOT_SECONDS)
            was_idle = slots.busy == acquired
            attempts = self._claim(acquired) if acquired else []
            for attempt in attempts:
                future = event_loop.start_on_loop(partial(executor.run_attempt, attempt))
                future.add_done_callback(self._on_end)
            slots.release(acquired - len(attempts))
            self.notifications.claimed([each.run.task_id for each in attempts if each.run.task_id])
            if self.state.is_burst and acquired and not attempts and was_idle:
                return  # No attempt was running, so none could have enqueued another run.
            if len(attempts) < acquired:
                may_be_due.wait(poll_seconds)

    def close(self) -> None:
        """Stop the notifications. Call it after all attempts have ended."""
        self.notifications.stop()

    def _claim(self, most: int) -> list[Attempt]:
        """Claim at most ``most`` due runs. After a database error, pause and claim none."""
        try:
            return event_loop.run_in_records_pool(claims.claim_due, self.state.queue, most)
        except Error as error:
            logger.warning("Cannot claim runs: %s", error)
            self.state.draining.wait(_ERROR_SECONDS)
            return []

    def _on_end(self, future: Future[None]) -> None:
        """Release the slot of an attempt that has ended."""
        self.state.slots.release()
        if concurrency_limits.limits():  # A run that waited for the limit may be due now.
            process.get(RunMayBeDue).set()
        error = None if future.cancelled() else future.exception()
        if error is not None:
            logger.error("An attempt ended with an error that it did not record", exc_info=error)
