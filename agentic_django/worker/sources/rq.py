"""Wakes the worker when a run is enqueued with RQ, and removes the jobs of claimed runs.

A delivery is an RQ job with a run's id. It only shows that a run may be due. The worker does not
dequeue deliveries, but claims runs from the database. It uses only RQ's public API, in two threads
with one connection to Redis each: ``QueueWatcher`` and ``DeliveryRemover``.

Other jobs stay in the queue for RQ's own workers. Claims do not depend on Redis. While Redis cannot
be reached, the worker finds runs at the poll interval.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from uuid import UUID

import django_rq
from django_tasks_rq import Job
from rq import Queue
from rq.exceptions import DeserializationError
from rq.suspension import is_suspended

from agentic_django.concurrency import event_loop
from agentic_django.concurrency.background_thread import BackgroundThread
from agentic_django.concurrency.process_state import process
from agentic_django.engine.run_rows import run_rows
from agentic_django.signals import logger
from agentic_django.worker.backend import RunMayBeDue

__all__ = ["Deliveries", "DeliveryRemover", "QueueWatcher", "RQNotifications"]

_TASK_PATH = "agentic_django.tasks.execute"

_JOB_TTL_SECONDS = 1
"""The time after which Redis deletes a job that was removed from the queue."""

_WAIT_SECONDS = 1
"""The longest wait for a job to be appended, and for a claim."""

_SENDER_SECONDS = 0.01
"""The time in which the process that enqueues a run records that in the row, which it locks."""

_WATCH_SECONDS = 0.03
"""The interval at which a queue that is not empty is checked for a new job."""

_CLEAN_SECONDS = 1.0
"""The interval at which deliveries are removed whose run is not pending."""

_ERROR_SECONDS = 1.0
"""The pause after Redis or the database could not be reached."""

_STOP_SECONDS = 5.0


class RQNotifications:
    """Wakes the claim loop when a job is appended to an RQ queue, and keeps the queue clean."""

    def __init__(self, name: str) -> None:
        rq_queue = django_rq.get_queue(name, job_class=Job)
        self._watcher = QueueWatcher(rq_queue)
        self._remover = DeliveryRemover(rq_queue)

    @property
    def is_suspended(self) -> bool:
        """Whether ``rq suspend`` has paused the workers."""
        return self._remover.is_suspended

    def start(self) -> None:
        """Start waking the claim loop."""
        self._remover.attempt(self._remover.check_suspended)
        self._watcher.start()
        self._remover.start()

    def claimed(self, task_ids: Sequence[str]) -> None:
        """Request the removal of the deliveries of claimed runs."""
        self._remover.add(task_ids)

    def stop(self) -> None:
        """Stop waking the claim loop, and remove the deliveries of all claimed runs."""
        self._watcher.stop(_STOP_SECONDS)
        self._remover.stop(_STOP_SECONDS)
        self._remover.attempt(self._remover.work)


class QueueThread(BackgroundThread):
    """Repeats its work on an RQ queue until it is stopped, with a pause after an error."""

    def __init__(self, rq_queue: Queue) -> None:
        super().__init__()
        self._queue = rq_queue
        self._has_failed = False

    def work(self) -> None:
        """Do one round of the work, which may wait for something to do."""
        raise NotImplementedError

    def attempt(self, function: Callable[[], None]) -> bool:
        """Call a function, and return whether it succeeded. Log the first of successive errors."""
        try:
            function()
        except Exception as error:  # noqa: BLE001 - Redis or the database may be back later
            if not self._has_failed:
                logger.warning("Cannot use the RQ queue %r: %r", self._queue.name, error)
            self._has_failed = True
        else:
            self._has_failed = False
        return not self._has_failed

    def _run(self) -> None:
        while not self._is_stopped:
            if not self.attempt(self.work):
                self._pause(_ERROR_SECONDS)


class QueueWatcher(QueueThread):
    """Waits until a job is appended to the queue, and wakes the claim loop."""

    name = "agentic-rq-watch"

    def __init__(self, rq_queue: Queue) -> None:
        super().__init__(rq_queue)
        self._last_entry: bytes | str | None = None
        self._times_seen = 0

    def work(self) -> None:
        """Wait for a job to be appended, and wake the claim loop.

        Moving the last entry to its own position blocks while the queue is empty, and changes
        nothing. If the entry is still there at the next check, the claim loop is woken once more,
        because a claim skips a run whose row is locked by the process that enqueues it.
        """
        key = self._queue.key
        entry = self._queue.connection.blmove(key, key, _WAIT_SECONDS, "RIGHT", "RIGHT")
        self._times_seen = self._times_seen + 1 if entry == self._last_entry else 1
        self._last_entry = entry
        if entry is None:
            return
        if self._times_seen == 1:
            self._pause(_SENDER_SECONDS)
        if self._times_seen <= 2:
            process.get(RunMayBeDue).set()
        self._pause(_WATCH_SECONDS)


class DeliveryRemover(QueueThread):
    """Removes the deliveries of claimed runs and, once a second, of runs that are not pending."""

    name = "agentic-rq-remove"

    def __init__(self, rq_queue: Queue) -> None:
        super().__init__(rq_queue)
        self.is_suspended = False
        self._deliveries = Deliveries(
            rq_queue, partial(event_loop.run_in_records_pool, pending_among)
        )
        self._claimed: list[str] = []
        self._cleaned_at = 0.0

    def add(self, task_ids: Sequence[str]) -> None:
        """Remove these deliveries soon."""
        with self._condition:
            self._claimed += task_ids
            self._condition.notify_all()

    def work(self) -> None:
        """Remove the deliveries of claimed runs. Wait for a claim if there are none."""
        with self._condition:
            self._condition.wait_for(lambda: self._claimed or self._is_stopped, _WAIT_SECONDS)
            claimed, self._claimed = self._claimed, []
        if claimed:
            self._deliveries.remove(claimed)
        if self._is_stopped or time.monotonic() - self._cleaned_at > _CLEAN_SECONDS:
            self._cleaned_at = time.monotonic()
            self.check_suspended()
            self._deliveries.clean()

    def check_suspended(self) -> None:
        """Read from Redis whether ``rq suspend`` has paused the workers."""
        self.is_suspended = bool(is_suspended(self._queue.connection))


class Deliveries:
    """The jobs of an RQ queue that contain a run's id.

    ``pending_among`` returns those of the given run ids whose runs are pending. ``part_size`` is
    the number of queue entries in a batch.
    """

    def __init__(
        self,
        rq_queue: Queue,
        pending_among: Callable[[Sequence[str]], set[str]],
        *,
        part_size: int = 200,
    ) -> None:
        self._queue = rq_queue
        self._pending_among = pending_among
        self._part_size = part_size
        self._offset = 0

    def remove(self, job_ids: Sequence[str]) -> None:
        """Remove jobs from the queue, and let Redis delete them.

        A job that is not in the queue stays in Redis, because one of RQ's own workers executes it.
        """
        connection = self._queue.connection
        with connection.pipeline() as pipeline:
            for job_id in job_ids:
                self._queue.remove(job_id, pipeline=pipeline)
            removed_counts = pipeline.execute()
        with connection.pipeline() as pipeline:
            for job_id, count in zip(job_ids, removed_counts, strict=True):
                if count:
                    Job(job_id, connection=connection).cleanup(_JOB_TTL_SECONDS, pipeline=pipeline)
            pipeline.execute()

    def clean(self) -> None:
        """Remove deliveries whose run is not pending. Continue where the last call stopped.

        These deliveries belong to runs that were cancelled, enqueued twice, or claimed before they
        were enqueued. The call stops at the first batch of entries without one.
        """
        while job_ids := self._queue.get_job_ids(self._offset, self._part_size):
            connection, serializer = self._queue.connection, self._queue.serializer
            jobs = Job.fetch_many(job_ids, connection=connection, serializer=serializer)
            run_ids = {job.id: _run_id(job) for job in jobs if job is not None}
            pending = self._pending_among([run_id for run_id in run_ids.values() if run_id])
            kept = {key for key, run_id in run_ids.items() if not run_id or run_id in pending}
            stale = [job_id for job_id in job_ids if job_id not in kept]  # Or not in Redis.
            self._offset += len(job_ids) - len(stale)
            if stale:
                self.remove(stale)
            if not stale or len(job_ids) < self._part_size:
                break
        if len(job_ids) < self._part_size:
            self._offset = 0


def _run_id(job: Any) -> str:
    """Return the id of the run that a job executes, or an empty string for another job."""
    try:
        return str(UUID(job.args[0])) if job.func_name == _TASK_PATH else ""
    except (DeserializationError, IndexError, TypeError, ValueError):
        return ""


def pending_among(run_ids: Sequence[str]) -> set[str]:
    """Return those of the run ids whose runs are pending."""
    pending = run_rows().pending().filter(pk__in=run_ids)
    return {str(pk) for pk in pending.values_list("pk", flat=True)}
