"""What RQ is told of the jobs that deliver runs: begun, alive, ended; many in one exchange.

RQ's own workers tell it of each job in about ten exchanges. These jobs are written in the same
words, so its registries, its pages and the cleaning of what is abandoned are the same.
"""

from __future__ import annotations

import copy
import traceback
from collections.abc import Sequence
from typing import Any

from django_tasks import TaskResult, TaskResultStatus
from django_tasks.signals import task_finished, task_started
from rq.executions import Execution
from rq.intermediate_queue import IntermediateQueue
from rq.job import JobStatus
from rq.utils import now
from rq.worker import BaseWorker

__all__ = ["RunJobs"]


class RunJobs:
    """The jobs that a worker is at."""

    def __init__(self, worker: BaseWorker) -> None:
        self.worker = worker
        self.queue = worker.queues[0]
        self._waiting = IntermediateQueue(self.queue.key, worker.connection).key
        self._open: dict[str, tuple[Any, Execution]] = {}

    def begin(self, jobs: Sequence[Any]) -> None:
        """Tell that jobs are begun, and by whom."""
        opened = {}
        with self.worker.connection.pipeline() as pipeline:
            for job in jobs:
                seconds, name = self.worker.get_heartbeat_ttl(job), self.worker.name
                execution = Execution.create(job, seconds, pipeline=pipeline, worker_name=name)
                job.prepare_for_execution(name, pipeline=pipeline)
                pipeline.lrem(self._waiting, 1, job.id)
                opened[job.id] = (job, execution)
            pipeline.execute()
        self._open |= opened
        for job in jobs:
            self._signal(task_started, job, TaskResultStatus.RUNNING)

    def beat(self) -> None:
        """Tell that all jobs are alive."""
        beaten = list(self._open.values())
        with self.worker.connection.pipeline() as pipeline:
            for job, execution in beaten:
                seconds = self.worker.get_heartbeat_ttl(job)
                execution.heartbeat(job.started_job_registry, seconds, pipeline=pipeline)
                job.heartbeat(now(), seconds, pipeline=pipeline, xx=True)
            pipeline.execute()

    def end(self, jobs: Sequence[Any]) -> None:
        """Tell that jobs came to their ends."""
        ended = [self._open.pop(job.id) for job in jobs]
        with self.worker.connection.pipeline() as pipeline:
            for job, execution in ended:
                self._succeed(job, execution, pipeline)
            for job, _ in ended:
                pipeline.exists(job.dependents_key)
            told = pipeline.execute()
        for (job, _), has_dependents in zip(ended, told[-len(ended) :], strict=True):
            if has_dependents:
                self.queue.enqueue_dependents(job)
            self._signal(task_finished, job, TaskResultStatus.SUCCESSFUL)

    def _succeed(self, job: Any, execution: Execution, pipeline: Any) -> None:
        job.ended_at, job._status, job._result = now(), JobStatus.FINISHED, None
        seconds = job.get_result_ttl(self.worker.default_result_ttl)
        self.worker.increment_successful_job_count(pipeline=pipeline)
        self.worker.increment_total_working_time(job.ended_at - job.started_at, pipeline)
        job._handle_success(
            seconds,
            pipeline=pipeline,
            worker_name=self.worker.name,
            execution_id=execution.id,
            execution_started_at=execution.created_at,
            execution_ended_at=job.ended_at,
        )
        job.cleanup(seconds, pipeline=pipeline, remove_from_queue=False)
        execution.delete(job=job, pipeline=pipeline)

    def fail(self, job: Any, error: BaseException) -> None:
        """Tell that a job ended with an exception, and which; as RQ's own workers do."""
        one = copy.copy(self.worker)  # RQ keeps in the worker which job it is at.
        job, one.execution = self._open.pop(job.id)
        reason = (type(error), error, error.__traceback__)
        job._status = JobStatus.FAILED
        one.handle_execution_ended(job, self.queue, job.failure_callback_timeout)
        job.execute_failure_callback(one.death_penalty_class, *reason)
        one.handle_exception(job, *reason)
        one.handle_job_failure(
            job=job,
            queue=self.queue,
            started_job_registry=self.queue.started_job_registry,
            exc_string="".join(traceback.format_exception(*reason)),
        )

    def _signal(self, signal: Any, job: Any, status: TaskResultStatus) -> None:
        """Send a signal of the task backend's, as its own jobs do."""
        backend = job.meta["backend_name"]
        task = job.func.using(queue_name=job.origin, backend=backend)
        result: TaskResult[Any] = TaskResult(
            task=task,
            id=job.id,
            status=status,
            enqueued_at=job.enqueued_at,
            started_at=job.started_at,
            finished_at=job.ended_at,
            last_attempted_at=job.started_at,
            args=list(job.args),
            kwargs=job.kwargs,
            backend=backend,
            errors=[],
            worker_ids=[self.worker.name],
        )
        signal.send_robust(type(task.get_backend()), task_result=result)
