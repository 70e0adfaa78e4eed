"""RQ wakes the worker when a run is enqueued; the worker removes the jobs of claimed runs.

A job of RQ that carries a run's id, a delivery, is permission to work. The worker does not dequeue
deliveries: it claims runs from their table. It uses RQ's public API only, in two threads with one
connection to Redis each:

- ``agentic-rq-wait`` waits until a job is appended to the queue, and wakes the claim loop.
- ``agentic-rq-remove`` removes the deliveries of claimed runs. Once a second it also examines a
  part of the queue for deliveries whose run is not pending.

Other jobs stay in the queue, for RQ's own workers. Claims do not depend on Redis: while it is
away, the worker finds runs at the poll interval.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any
from uuid import UUID

import django_rq
from django_tasks_rq import Job
from rq import Queue
from rq.exceptions import DeserializationError
from rq.suspension import is_suspended

from agentic_django.concurrency import event_loop
from agentic_django.concurrency.process_state import process
from agentic_django.engine import transitions
from agentic_django.signals import logger
from agentic_django.worker.backend import RunMayBeDue

__all__ = ["Deliveries", "RQNotifications"]

_TASK = "agentic_django.tasks.execute"

_KEPT_SECONDS = 1
"""Redis deletes a job this long after it was removed from the queue."""

_WAIT_SECONDS = 1
"""The longest wait for a job to be appended, and for a claim."""

_SENDER_SECONDS = 0.01
"""Time for the sender of a run to note in its row that it was sent: the row is locked meanwhile."""

_LOOK_SECONDS = 0.03
"""Time between two looks at a queue that has jobs, for one that was appended."""

_CLEAN_SECONDS = 1.0
"""Time between two searches for deliveries whose run is not pending."""


class RQNotifications:
    """Wakes the claim loop when a job is appended to a queue of RQ, and keeps the queue clean."""

    def __init__(self, name: str) -> None:
        self.is_suspended = False
        """Whether ``rq suspend`` has paused the workers."""
        self._queue = django_rq.get_queue(name, job_class=Job)
        self._deliveries = Deliveries(
            self._queue, partial(event_loop.run_in_records_pool, pending_among)
        )
        self._claimed: queue.SimpleQueue[Sequence[str]] = queue.SimpleQueue()
        self._stopped = threading.Event()
        self._entry: bytes | str | None = None
        self._looks = 0
        self._cleaned_at = 0.0
        self._threads = [
            threading.Thread(target=self._repeat, args=(act,), name=act_name, daemon=True)
            for act_name, act in (
                ("agentic-rq-wait", self._wait),
                ("agentic-rq-remove", self._remove),
            )
        ]

    def start(self) -> None:
        """Start to wake the claim loop."""
        self._attempt(self._see_whether_suspended)
        for thread in self._threads:
            thread.start()

    def claimed(self, task_ids: Sequence[str]) -> None:
        """Have the deliveries of claimed runs removed from the queue."""
        self._claimed.put(task_ids)

    def stop(self) -> None:
        """Remove the deliveries of all runs that were claimed, and stop."""
        self._stopped.set()
        self._claimed.put([])
        for thread in self._threads:
            if thread.is_alive():
                thread.join(5)
        self._claimed.put([])
        self._attempt(self._remove)

    def _repeat(self, act: Callable[[], None]) -> None:
        has_worked = True
        while not self._stopped.is_set():
            has_worked = self._attempt(act, is_logged=has_worked)
            if not has_worked:
                self._stopped.wait(1)

    def _attempt(self, act: Callable[[], None], *, is_logged: bool = True) -> bool:
        """Return whether an act succeeded; log the first of several failures in a row."""
        try:
            act()
        except Exception as error:  # noqa: BLE001 - Redis or the database is away; tried again
            if is_logged:
                logger.warning("Cannot use the queue %r of RQ for now: %r", self._queue.name, error)
            return False
        return True

    def _wait(self) -> None:
        """Wait for a job to be appended, and wake the claim loop.

        Moving the last entry to where it is blocks while the queue is empty, and changes nothing.
        If the entry is still there at the next look, the claim loop is woken once more: a claim
        skips a run whose row its sender has locked.
        """
        key = self._queue.key
        entry = self._queue.connection.blmove(key, key, _WAIT_SECONDS, "RIGHT", "RIGHT")
        self._looks = self._looks + 1 if entry == self._entry else 1
        self._entry = entry
        if entry is None:
            return
        if self._looks == 1:
            self._stopped.wait(_SENDER_SECONDS)
        if self._looks <= 2:
            process.get(RunMayBeDue).set()
        self._stopped.wait(_LOOK_SECONDS)

    def _remove(self) -> None:
        task_ids = self._wait_for_claimed()
        if task_ids:
            self._deliveries.remove(task_ids)
        if self._stopped.is_set() or time.monotonic() - self._cleaned_at > _CLEAN_SECONDS:
            self._cleaned_at = time.monotonic()
            self._see_whether_suspended()
            self._deliveries.clean()

    def _wait_for_claimed(self) -> list[str]:
        """Return the deliveries of all runs that were claimed since the last call."""
        task_ids: list[str] = []
        with suppress(queue.Empty):
            task_ids += self._claimed.get(timeout=_WAIT_SECONDS)
            while True:
                task_ids += self._claimed.get_nowait()
        return task_ids

    def _see_whether_suspended(self) -> None:
        self.is_suspended = bool(is_suspended(self._queue.connection))


class Deliveries:
    """The jobs of a queue that carry runs.

    ``pending_among`` returns those of the given run ids whose runs are pending. ``part`` is the
    number of entries that are examined at once.
    """

    def __init__(
        self,
        rq_queue: Queue,
        pending_among: Callable[[Sequence[str]], set[str]],
        *,
        part: int = 200,
    ) -> None:
        self._queue = rq_queue
        self._pending_among = pending_among
        self._part = part
        self._offset = 0

    def remove(self, job_ids: Sequence[str]) -> None:
        """Remove jobs from the queue, and let Redis delete them.

        A job that is not in the queue is left alone: a stock worker executes it.
        """
        connection = self._queue.connection
        with connection.pipeline() as pipeline:
            for job_id in job_ids:
                self._queue.remove(job_id, pipeline=pipeline)
            counts = pipeline.execute()
        with connection.pipeline() as pipeline:
            for job_id, count in zip(job_ids, counts, strict=True):
                if count:
                    Job(job_id, connection=connection).cleanup(_KEPT_SECONDS, pipeline=pipeline)
            pipeline.execute()

    def clean(self) -> None:
        """Remove jobs whose run is not pending; continue where the last call stopped.

        They are left by runs that were claimed before they were sent, sent twice, or cancelled.
        """
        while job_ids := self._queue.get_job_ids(self._offset, self._part):
            stale = self._stale(job_ids)
            self._offset += len(job_ids) - len(stale)
            if stale:
                self.remove(stale)
            if not stale or len(job_ids) < self._part:
                break
        if len(job_ids) < self._part:
            self._offset = 0

    def _stale(self, job_ids: Sequence[str]) -> list[str]:
        """Return those of the jobs whose run is not pending, and those that do not exist."""
        connection, serializer = self._queue.connection, self._queue.serializer
        jobs = Job.fetch_many(job_ids, connection=connection, serializer=serializer)
        run_ids = {job.id: _run_id(job) for job in jobs if job is not None}
        pending = self._pending_among([run_id for run_id in run_ids.values() if run_id])
        kept = {job_id for job_id, run_id in run_ids.items() if not run_id or run_id in pending}
        return [job_id for job_id in job_ids if job_id not in kept]


def _run_id(job: Any) -> str:
    """Return the id of the run that a job carries; empty if it carries none."""
    try:
        return str(UUID(job.args[0])) if job.func_name == _TASK else ""
    except (DeserializationError, IndexError, TypeError, ValueError):
        return ""


def pending_among(run_ids: Sequence[str]) -> set[str]:
    """Return those of the ids whose runs are pending."""
    found = transitions.run_rows().pending().filter(pk__in=run_ids).values_list("pk", flat=True)
    return {str(pk) for pk in found}
