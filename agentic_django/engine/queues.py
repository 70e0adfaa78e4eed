"""Routes runs to the queues of the task backend.

``AGENTIC_DJANGO_QUEUES`` names a queue for each agent. The task is declared in
``agentic_django.tasks`` and registers itself here with ``run_task``, so this module does not import
it.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from django.conf import settings as django_settings
from django.tasks import Task, TaskResult, task_backends
from django.tasks.backends.base import BaseTaskBackend

from agentic_django.concurrency import event_loop
from agentic_django.concurrency.process_state import process
from agentic_django.conf import settings

__all__ = [
    "Delivery",
    "agents_on_queue",
    "backend",
    "delivery",
    "enqueue",
    "enqueue_deferred",
    "executes_immediately",
    "queue_for_agent",
    "run_task",
    "task_for_agent",
]

if TYPE_CHECKING:
    BaseTask = Task[[str], None]
else:
    BaseTask = Task


class RunTask(BaseTask):
    """The task that delivers a run's id to a worker.

    Django validates a task when it is declared. This one is validated when it is enqueued. So a
    host whose backend does not have the queue gets a system check, not an error at import.
    """

    def __post_init__(self) -> None:
        """Skip the validation. See the class docstring."""


class Delivery(StrEnum):
    """How a task backend delivers tasks."""

    IMMEDIATE = "immediate"  # Enqueueing a task executes it.
    RQ = "rq"
    ROWS = "rows"  # No task is stored. Workers find due runs in the table of runs.
    OTHER = "other"  # The backend has workers of its own.


KNOWN_BACKENDS = {
    "django.tasks.backends.immediate.ImmediateBackend": Delivery.IMMEDIATE,
    "django_tasks.backends.immediate.ImmediateBackend": Delivery.IMMEDIATE,
    "django_tasks_rq.backend.RQBackend": Delivery.RQ,
}
"""The delivery of backends that cannot declare it themselves, by the path of their class."""


class DeferredRuns(threading.local):
    """The runs that a thread enqueues after its current run has ended."""

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
    """Return the queue for an agent's runs. ``"*"`` in the setting means all other agents."""
    queues = settings.QUEUES
    return queues.get(agent_key or "*", queues.get("*", "default"))


def agents_on_queue(queue: str) -> tuple[set[str], bool]:
    """Return the agent keys that are set for a queue, and whether it serves all other agents."""
    queues = settings.QUEUES
    named = {key for key, name in queues.items() if name == queue and key != "*"}
    return named, queue == queue_for_agent(None)


def task_for_agent(agent_key: str | None) -> BaseTask:
    """Return the task as it is enqueued for an agent's runs, with its backend and queue."""
    [task] = _registered
    return task.using(backend=settings.TASK_BACKEND, queue_name=queue_for_agent(agent_key))


def delivery() -> Delivery:
    """Return how the task backend delivers tasks.

    A backend declares it in the attribute ``agentic_django_delivery``. The backends of Django
    and of known packages, and their subclasses, do not need the attribute.
    """
    classes = type(backend()).mro()
    known = (KNOWN_BACKENDS.get(f"{kind.__module__}.{kind.__name__}") for kind in classes)
    declared = getattr(backend(), "agentic_django_delivery", None)
    return Delivery(declared or next(filter(None, known), Delivery.OTHER))


def executes_immediately(agent_key: str | None = None) -> bool:
    """Whether enqueueing an agent's run executes it before the call returns.

    Without an agent, whether this is true for all agents. An RQ queue with ``ASYNC`` set to False
    executes its jobs immediately.
    """
    if delivery() is not Delivery.RQ:
        return delivery() is Delivery.IMMEDIATE
    agents = {*settings.QUEUES, "*"} if agent_key is None else {agent_key}
    options = getattr(django_settings, "RQ_QUEUES", {})
    return not any(options.get(queue_for_agent(key), {}).get("ASYNC", True) for key in agents)


def enqueue(run_id: str, agent_key: str) -> TaskResult[..., Any] | None:
    """Enqueue the task for a run; return None if that is deferred.

    If the backend executes immediately, a run that another run enqueues would be nested in it. That
    run is deferred. The outermost run enqueues it when it ends.
    """
    if event_loop.is_executing_run() and executes_immediately(agent_key):
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
