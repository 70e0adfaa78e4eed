"""Takes runs from a queue of RQ, beside RQ's own workers and by RQ's own protocol."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Coroutine, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import django_rq
from django.db import Error
from django_tasks_rq import Job
from redis import BlockingConnectionPool
from redis.exceptions import RedisError
from rq import Queue
from rq.exceptions import DequeueTimeout
from rq.intermediate_queue import IntermediateQueue
from rq.suspension import is_suspended
from rq.timeouts import BaseDeathPenalty
from rq.utils import as_text
from rq.worker import BaseWorker, WorkerStatus

from agentic_django.concurrency import event_loop
from agentic_django.engine import claims
from agentic_django.models import AgentRun
from agentic_django.signals import logger
from agentic_django.worker import executor
from agentic_django.worker.slots import WorkerState
from agentic_django.worker.sources import rq_foreign_jobs, rq_jobs

__all__ = ["RQSource"]

_OURS = "agentic_django.tasks.execute"

_BATCH = 20
"""At most so many jobs are taken, begun and ended at once."""

_MOVES = (6, 2, 0)
"""The Redis since which what is taken from a queue is kept until it is begun."""

_GATHERING_SECONDS = 0.01
"""Ends that come so soon behind another are told with it."""

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

    def __init__(self, queue: Queue, duty: WorkerState) -> None:
        super().__init__(
            [queue],
            connection=queue.connection,
            job_class=Job,
            default_result_ttl=_RESULT_SECONDS,
        )
        self.duty = duty
        self.deliveries = rq_jobs.RunJobs(self)
        self._threads = ThreadPoolExecutor(duty.slots.count, "agentic-slot")
        self._others = rq_foreign_jobs.ForeignJobs(queue.name)
        self._looked, self._suspended = 0.0, False
        self._reserved = 0
        self._beaten = time.monotonic()
        self._ends = Ends(self.deliveries, duty)

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
        """Take slots, then jobs for them; whether a burst is over, for there is none.

        No more is dequeued than there are slots. A run that ends may send another one, so it
        has to have ended before the look.
        """
        wanted = self._reserved = self.duty.slots.take(_BATCH)
        if not wanted:
            return False
        was_alone = self.duty.slots.busy == wanted
        found: list[Any] = []
        try:
            found = self._dequeue(wanted)
        finally:
            self._reserved = 0
            self.duty.slots.give_back(wanted - len(found))
        ours = [job for job in found if job.func_name == _OURS]
        for job in found:
            if job not in ours:
                done = self._threads.submit(self._perform_other, job)
                self.duty.slots.give_back_after(done)
        if ours:
            self._perform(ours)
        return not found and was_alone and self.duty.is_burst

    def _dequeue(self, most: int) -> list[Any]:
        """Wait for a job, at most for a second; return it and those behind it."""
        queue = self.queues[0]
        seconds = None if self.duty.is_burst else 1
        try:
            found = self.queue_class.dequeue_any(
                self.queues, seconds, connection=self.connection, job_class=self.job_class
            )
        except DequeueTimeout:
            return []
        if found is None:
            self.duty.ending.wait(0.05)
            return []
        more = min(most - 1, queue.count)
        return [found[0], *self._fetch(self._pop(more))] if more > 0 else [found[0]]

    def _pop(self, most: int) -> list[str]:
        """Take ids from the queue, as RQ does: they are kept until they are begun."""
        queue = self.queues[0]
        if self.get_redis_server_version() < _MOVES:  # type: ignore[no-untyped-call]
            return []
        kept = IntermediateQueue(queue.key, self.connection).key
        with self.connection.pipeline(transaction=False) as pipeline:
            for _ in range(most):
                pipeline.lmove(queue.key, kept)
            return [as_text(job_id) for job_id in pipeline.execute() if job_id is not None]

    def _fetch(self, ids: Sequence[str]) -> list[Any]:
        """Return the jobs with these ids, as far as they still are."""
        jobs = Job.fetch_many(ids, connection=self.connection)
        return [job for job in jobs if job is not None]

    def _perform_other(self, job: Any) -> None:
        job.redis_server_version = self.get_redis_server_version()  # type: ignore[no-untyped-call]
        try:
            self._others.perform(job, self.queues[0])
        except Exception:  # noqa: BLE001 - one job's trouble is not the others'
            logger.exception("Job %s cannot be carried out", job.id)

    def _perform(self, jobs: Sequence[Any]) -> None:
        """Carry the runs that jobs deliver; each job frees its slot when its end is told."""
        try:
            self.deliveries.begin(jobs)
        except RedisError:  # What cannot be told is not begun: the sweep sends it again.
            self.duty.slots.give_back(len(jobs))
            raise
        try:
            claimed = event_loop.run_recording(
                claims.claim_delivered, [job.args[0] for job in jobs]
            )
        except Error:
            claimed = []  # Each says for itself what is wrong.
        taken = {str(run.pk): run for run in claimed}
        for job in jobs:
            run_id = job.args[0]
            self._carry(job, partial(_attempt, taken.pop(run_id, None), run_id))

    def _carry(self, job: Any, attempt: Any) -> None:
        event_loop.start_on_loop(attempt).add_done_callback(partial(self._ends.add, job))

    def beat(self) -> None:
        """Tell RQ how the worker stands, and now and then that its jobs are alive."""
        is_busy = self.duty.slots.busy > self._reserved
        state = WorkerStatus.BUSY if is_busy else WorkerStatus.IDLE
        if state != self.get_state():
            self.set_state(state)
        if time.monotonic() - self._beaten > _JOBS_BEAT:
            self._beaten = time.monotonic()
            self.heartbeat()
            self.deliveries.beat()

    def procline(self, message: str) -> None:
        """Leave the process its name."""

    def close(self) -> None:
        """Tell the last ends, and that the worker is gone."""
        self._ends.close()
        self.teardown()  # type: ignore[no-untyped-call]


def _attempt(run: AgentRun | None, run_id: str) -> Coroutine[Any, Any, None]:
    """Carry the run that was taken; or else that of a delivery, or another that is due."""
    return executor.execute_on_loop(run_id) if run is None else executor.run_attempt(run)


class Ends:
    """A thread that tells of ends, those together that come together."""

    def __init__(self, deliveries: rq_jobs.RunJobs, duty: WorkerState) -> None:
        self.deliveries = deliveries
        self.duty = duty
        self._come: queue.SimpleQueue[tuple[Any, BaseException | None] | None]
        self._come = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="agentic-ends", daemon=True)
        self._thread.start()

    def add(self, job: Any, future: Future[None]) -> None:
        """Have told that a job's attempt has ended."""
        cancelled = future.cancelled()
        self._come.put((job, None if cancelled else future.exception()))

    def close(self) -> None:
        """Wait until all is told."""
        self._come.put(None)
        self._thread.join(10)

    def _run(self) -> None:
        while (first := self._come.get()) is not None:
            time.sleep(_GATHERING_SECONDS)
            ended = [first]
            while len(ended) < _BATCH and not self._come.empty():
                if (end := self._come.get()) is None:
                    self._come.put(None)
                    break
                ended.append(end)
            self._tell(ended)
            self.duty.slots.give_back(len(ended))

    def _tell(self, ended: Sequence[tuple[Any, BaseException | None]]) -> None:
        try:
            for job, error in ended:
                if error is not None:
                    self.deliveries.fail(job, error)
            self.deliveries.end([job for job, error in ended if error is None])
        except RedisError as error:  # The runs' own rows are not concerned.
            logger.warning("Redis cannot be told of %s jobs: %s", len(ended), error)
        except Exception:  # noqa: BLE001 - the next ends are to be told
            logger.exception("The ends of %s jobs cannot be told", len(ended))


class RQSource:
    """The source: one queue, as Redis pops from several without keeping what it popped."""

    def __init__(self, duty: WorkerState) -> None:
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
            self.worker.close()
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
