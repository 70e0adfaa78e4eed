"""Routes runs to the queues of the task backend.

``AGENTIC_DJANGO_QUEUES`` names a queue for each agent. The task that a queue delivers is declared
in ``agentic_django.tasks``; it registers itself here with ``run_task``, so this module does not
import it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.tasks import Task, TaskResult, task_backends
from django.tasks.backends.base import BaseTaskBackend

from agentic_django.concurrency import event_loop
from agentic_django.concurrency.process_state import process
from agentic_django.conf import settings

__all__ = [
    "agents_on_queue",
    "backend",
    "enqueue",
    "enqueue_deferred",
    "executes_immediately",
    "is_rq",
    "queue_for_agent",
    "rows_are_queue",
    "run_task",
    "task_for_agent",
]

if TYPE_CHECKING:
    BaseTask = Task[[str], None]
else:
    BaseTask = Task


class RunTask(BaseTask):
    """The task that delivers a run's id to a worker.

    Django validates a task when it is declared. This one is validated when it is enqueued: a
    host whose backend does not have its queue gets a system check, not an error at import.
    """

    def __post_init__(self) -> None:
        """Do not validate yet; see the class."""


class DeferredRuns(threading.local):
    """The runs that a thread enqueues when it has executed its present run."""

    def __init__(self) -> None:
        self.runs: deque[tuple[str, str]] = deque()
        self.is_draining = False


_registered: list[RunTask] = []


def run_task(function: Callable[[str], None]) -> RunTask:
    """Declare the task that executes a run, and deliver runs with it from now on."""
    task = RunTask(func=function)
    _registered[:] = [task]
    return task


def backend() -> BaseTaskBackend:
    """Return the task backend that ``AGENTIC_DJANGO_TASK_BACKEND`` names."""
    return task_backends[settings.TASK_BACKEND]


def queue_for_agent(agent_key: str | None) -> str:
    """Return the queue for an agent's runs; ``"*"`` in the setting stands for all other agents."""
    queues = settings.QUEUES
    return queues.get(agent_key or "*", queues.get("*", "default"))


def agents_on_queue(queue: str) -> tuple[set[str], bool]:
    """Return the agent keys that are set for a queue, and whether it serves all others."""
    queues = settings.QUEUES
    named = {key for key, name in queues.items() if name == queue and key != "*"}
    return named, queue == queue_for_agent(None)


def task_for_agent(agent_key: str | None) -> BaseTask:
    """Return the task as it is enqueued for an agent's runs, with its backend and queue."""
    [task] = _registered
    return task.using(backend=settings.TASK_BACKEND, queue_name=queue_for_agent(agent_key))


def executes_immediately() -> bool:
    """Whether enqueueing a task executes it before the call returns."""
    return any(kind.__name__ == "ImmediateBackend" for kind in type(backend()).mro())


def rows_are_queue() -> bool:
    """Whether the backend stores no tasks: workers find due runs in the runs' own table."""
    return getattr(backend(), "rows_are_queue", False)


def is_rq() -> bool:
    """Whether the backend enqueues tasks to RQ."""
    kinds = type(backend()).mro()
    return any(kind.__module__.startswith("django_tasks_rq") for kind in kinds)


def enqueue(run_id: str, agent_key: str) -> TaskResult[..., Any] | None:
    """Enqueue the task for a run; return None if that is deferred.

    With a backend that executes immediately, a run that another run enqueues would nest in it.
    Such a run is deferred: the outermost run enqueues it at its own end.
    """
    if event_loop.is_executing_run() and executes_immediately():
        process.get(DeferredRuns).runs.append((run_id, agent_key))
        return None
    return task_for_agent(agent_key).enqueue(run_id)


def enqueue_deferred() -> None:
    """Enqueue the runs that this thread deferred, unless it still executes a run."""
    deferred = process.get(DeferredRuns)
    if event_loop.is_executing_run() or deferred.is_draining:
        return
    deferred.is_draining = True
    try:
        while deferred.runs:
            enqueue(*deferred.runs.popleft())
    finally:
        deferred.is_draining = False
