"""Takes runs from a queue of RQ, beside RQ's own workers and by RQ's own protocol."""

from __future__ import annotations

import copy
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import django_rq
from django_tasks_rq import Job
from redis import BlockingConnectionPool
from redis.exceptions import RedisError
from rq import Queue
from rq.exceptions import DequeueTimeout
from rq.suspension import is_suspended
from rq.timeouts import BaseDeathPenalty
from rq.worker import BaseWorker, WorkerStatus

from agentic_django import others
from agentic_django.duty import Duty
from agentic_django.signals import logger

__all__ = ["RedisQueue"]

_OURS = "agentic_django.tasks.execute"

_CONNECTIONS = 16
"""To Redis, whatever the number of slots: each command takes one for a moment."""

_RESULT_SECONDS = 60
"""Redis keeps the results of our jobs so long: what a run came to is in its row."""

_JOBS_BEAT = 30.0
"""Seconds after which RQ is told that jobs are still worked on; it forgets them after 90."""


class NoPenalty(BaseDeathPenalty):
    """A run ends by its own limit, which does not need a signal in the main thread."""

    def setup_death_penalty(self) -> None:
        """Set nothing up."""

    def cancel_death_penalty(self) -> None:
        """Cancel nothing."""


class SlotWorker(BaseWorker):
    """A worker of RQ's that is at as many of our jobs at once as it has slots."""

    death_penalty_class = NoPenalty
    log_result_lifespan = False

    def __init__(self, queue: Queue, duty: Duty) -> None:
        super().__init__(
            [queue],
            connection=queue.connection,
            job_class=Job,
            default_result_ttl=_RESULT_SECONDS,
        )
        self.duty = duty
        self._threads = ThreadPoolExecutor(duty.slots.count, "agentic-slot")
        self._others = others.Others(queue.name)
        self._looked, self._suspended = 0.0, False
        self._at: dict[str, tuple[BaseWorker, Any]] = {}
        self._beaten = time.monotonic()

    def take_jobs(self) -> None:
        """Take jobs while the duty lasts, or until there are none; outlasts Redis' absences."""
        while not self.duty.is_ending:
            try:
                if self._is_suspended():
                    self.duty.ending.wait(1)
                elif self._is_last_look():
                    return
            except RedisError as error:
                logger.warning("Redis cannot be reached: %s", error)
                self.duty.ending.wait(1)

    def _is_suspended(self) -> bool:
        """Look, once a second, whether work is suspended; clean registries when it is time."""
        if time.monotonic() - self._looked > 1:
            if self.should_run_maintenance_tasks:
                self.run_maintenance_tasks()  # type: ignore[no-untyped-call]
            self._suspended = bool(is_suspended(self.connection, self))
            self._looked = time.monotonic()
        return self._suspended

    def _is_last_look(self) -> bool:
        """Take a slot, then a job for it; whether a burst is over, for there is none.

        No more is dequeued than there are slots. A run that ends may send another one, so it
        has to have ended before the look.
        """
        if not self.duty.slots.take():
            return False
        was_alone = self.duty.slots.busy == 1
        found = None
        try:
            found = self._dequeue()
        finally:
            if found is None:
                self.duty.slots.give_back()
        if found is not None:
            self.execute_job(*found)
        return found is None and was_alone and self.duty.is_burst

    def _dequeue(self) -> tuple[Any, Any] | None:
        seconds = None if self.duty.is_burst else 1
        try:
            found: tuple[Any, Any] | None = self.queue_class.dequeue_any(
                self.queues, seconds, connection=self.connection, job_class=self.job_class
            )
        except DequeueTimeout:
            return None
        if found is None:
            self.duty.ending.wait(0.05)
        else:
            version = self.get_redis_server_version()  # type: ignore[no-untyped-call]
            found[0].redis_server_version = version
        return found

    def execute_job(self, job: Any, queue: Any) -> None:
        """Hand a job to a thread; the slot is free again when it is done."""
        perform = self._perform_run if job.func_name == _OURS else self._others.perform
        self.duty.slots.give_back_after(self._threads.submit(self._guarded, perform, job, queue))

    def _guarded(self, perform: Any, job: Any, queue: Any) -> None:
        try:
            perform(job, queue)
        except RedisError as error:  # The run's own row is not concerned.
            logger.warning("Redis cannot be told of job %s: %s", job.id, error)
        except Exception:  # noqa: BLE001 - one job's trouble is not the others'
            logger.exception("Job %s cannot be carried out", job.id)

    def _perform_run(self, job: Any, queue: Any) -> None:
        one = copy.copy(self)  # RQ keeps in the worker which job it is at.
        one.prepare_execution(job)
        self._at[job.id] = (one, job)
        try:
            one.perform_job(job, queue)
        finally:
            del self._at[job.id]

    def beat(self) -> None:
        """Tell RQ how the worker stands, and now and then that its jobs are alive."""
        state = WorkerStatus.BUSY if self.duty.slots.busy else WorkerStatus.IDLE
        if state != self.get_state():
            self.set_state(state)
        if time.monotonic() - self._beaten > _JOBS_BEAT:
            self._beaten = time.monotonic()
            self.heartbeat()
            for one, job in list(self._at.values()):
                if one.execution is not None:
                    copy.copy(one).maintain_heartbeats(job)

    def procline(self, message: str) -> None:
        """Leave the process its name."""


class RedisQueue:
    """The source: one queue, as Redis pops from several without keeping what it popped."""

    def __init__(self, duty: Duty) -> None:
        queue = django_rq.get_queue(duty.queue, job_class=Job)
        _bound(queue.connection)
        self.worker = SlotWorker(queue, duty)
        self.worker.bootstrap("WARNING")

    def work(self) -> None:
        """See ``duty.Source``."""
        self.worker.take_jobs()

    def beat(self) -> None:
        """See ``duty.Source``."""
        self.worker.beat()

    def close(self) -> None:
        """See ``duty.Source``."""
        try:
            self.worker.teardown()  # type: ignore[no-untyped-call]
        except RedisError as error:
            logger.warning("Redis cannot be told that the worker is gone: %s", error)


def _bound(connection: Any) -> None:
    """Let all threads share so many connections to Redis, and wait for one if all are taken."""
    pool = connection.connection_pool
    if type(pool).__name__ == "ConnectionPool":
        connection.connection_pool = BlockingConnectionPool(  # type: ignore[no-untyped-call]
            max_connections=_CONNECTIONS,
            timeout=60,
            connection_class=pool.connection_class,
            **pool.connection_kwargs,
        )
