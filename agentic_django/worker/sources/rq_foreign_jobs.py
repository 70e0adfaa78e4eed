"""Jobs on a queue of RQ's that are not runs: one of RQ's own workers is at each.

A process with many threads must not fork, so another one, which has none, does that for it. It
imports this module alone, and so has to set Django up here.
"""

from __future__ import annotations

import multiprocessing
import signal
import threading
from typing import Any

import django
from django.apps import apps

if not apps.ready:
    django.setup()

import django_rq
from django_rq.jobs import get_job_class
from django_rq.workers import get_worker
from django_tasks_rq import Job

__all__ = ["ForeignJobs", "execute_job"]


class ForeignJobs:
    """Has such jobs carried out."""

    def __init__(self, queue: str) -> None:
        self.queue = queue
        self._context = multiprocessing.get_context("forkserver")
        self._starting = threading.Lock()

    def perform(self, job: Any, queue: Any) -> None:
        """Have a job carried out as RQ would, and wait for it."""
        with self._starting:
            self._context.set_forkserver_preload([__name__])
            process = self._context.Process(target=execute_job, args=(self.queue, job.id))
            process.start()
        process.join()


def execute_job(queue: str, job_id: str) -> None:
    """Carry out one job of a queue as a stock worker does, in a process that it forks."""
    worker = get_worker(queue, job_class=_kind(queue, job_id))
    job = worker.job_class.fetch(job_id, worker.connection, serializer=worker.serializer)
    worker.register_birth()  # type: ignore[no-untyped-call]
    for number in (signal.SIGINT, signal.SIGTERM):  # Whoever waits for the job knows of them.
        signal.signal(number, signal.SIG_IGN)
    try:
        worker.execute_job(job, worker.queues[0])
    finally:
        worker.register_death()  # type: ignore[no-untyped-call]


def _kind(queue: str, job_id: str) -> type[Any]:
    """Return the class of a job: the task backend's own, or the site's for plain RQ jobs."""
    plain: type[Any] = get_job_class(None)
    job = plain.fetch(job_id, connection=django_rq.get_connection(queue))
    return Job if "backend_name" in job.meta else plain
