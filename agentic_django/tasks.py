"""The Django task that carries a run's id to the executor."""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING, Any

from django.db import close_old_connections
from django.tasks import Task, task_backends

from agentic_django import threads
from agentic_django.conf import settings

if TYPE_CHECKING:
    from django.tasks import TaskResult

__all__ = ["execute", "queue_of", "send"]

_outbox = threading.local()


def execute(run_id: str) -> None:
    """Execute a run, or another that is due: a delivery is permission to work, not an order."""
    from agentic_django import executor  # noqa: PLC0415 - the queue hop is a real loop

    try:
        executor.execute(run_id)
    finally:
        if not executes_at_once():  # A pool's thread would keep its connection for ever.
            close_old_connections()
    if not threads.in_run() and not getattr(_outbox, "draining", False):
        _drain()


# The task is made when it is first asked for: a host whose backend does not know our queue
# must meet a system check, not an exception at import.
_function = execute
del execute


def __getattr__(name: str) -> Any:
    if name == "execute":
        return _task(queue_of(None))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _task(queue: str) -> Task[..., Any]:
    alias = settings.TASK_BACKEND
    backend = task_backends[alias]
    return backend.task_class(func=_function, backend=alias, queue_name=queue)


def queue_of(agent_key: str | None) -> str:
    """Return the queue for an agent's runs; ``"*"`` in the setting stands for the rest."""
    queues = settings.QUEUES
    return queues.get(agent_key or "*", queues.get("*", "default"))


def send(run_id: str, agent_key: str) -> TaskResult[..., Any] | None:
    """Hand a run to the queue; None if it only waits for the run that this thread executes.

    Under a backend that executes at once, a run that is sent by a run would nest in it;
    instead the outermost one takes it up when it has ended.
    """
    if threads.in_run() and executes_at_once():
        _waiting().append((run_id, agent_key))
        return None
    return _task(queue_of(agent_key)).enqueue(run_id)


def executes_at_once() -> bool:
    """Whether enqueueing a task executes it before it returns."""
    return any(
        kind.__name__ == "ImmediateBackend"
        for kind in type(task_backends[settings.TASK_BACKEND]).mro()
    )


def _waiting() -> deque[tuple[str, str]]:
    if not hasattr(_outbox, "runs"):
        _outbox.runs = deque()
    return _outbox.runs  # type: ignore[no-any-return]


def _drain() -> None:
    _outbox.draining = True
    try:
        while _waiting():
            send(*_waiting().popleft())
    finally:
        _outbox.draining = False


def keys_on(queue: str) -> tuple[set[str], bool]:
    """Return the agent keys named for a queue, and whether it takes the rest too."""
    queues = settings.QUEUES
    return {k for k, q in queues.items() if q == queue and k != "*"}, queue == queue_of(None)
