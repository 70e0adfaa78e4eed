"""The task backend for sites without a queue server. Workers claim runs from the database.

To use it, set ``BACKEND`` in ``TASKS`` to ``agentic_django.worker.backend.RowBackend`` and run
``agentic_django_worker --source database``.
"""

from __future__ import annotations

import threading
from typing import Any

from django.tasks import TaskResult, TaskResultStatus
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.exceptions import InvalidTask
from django.utils import timezone

from agentic_django.concurrency.process_state import process
from agentic_django.concurrency.pubsub import Topic, publish

__all__ = ["RowBackend", "RunMayBeDue", "notify_workers"]

_TASK_PATH = "agentic_django.tasks.execute"


class RunMayBeDue(threading.Event):
    """Set when a run may be due. The claim loop of this process waits for it."""


class RowBackend(BaseTaskBackend):
    """Notifies workers that a run is due, and stores no tasks. Workers also poll for due runs."""

    supports_async_task = True
    agentic_django_delivery = "rows"
    """See ``engine.queues.delivery``."""

    def validate_task(self, task: Any) -> None:
        """Raise InvalidTask for any task except the one that executes a run."""
        super().validate_task(task)
        if task.module_path != _TASK_PATH:
            raise InvalidTask(
                f"RowBackend delivers agent runs only, not {task.module_path}. "
                "Use another backend of TASKS for other tasks."
            )

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Notify the workers of the task's queue. The result has no id: no task is stored."""
        self.validate_task(task)
        notify_workers(task.queue_name)
        return TaskResult(
            task=task,
            id="",
            status=TaskResultStatus.READY,
            enqueued_at=timezone.now(),
            started_at=None,
            last_attempted_at=None,
            finished_at=None,
            args=list(args),
            kwargs=dict(kwargs),
            backend=self.alias,
            errors=[],
            worker_ids=[],
        )


def notify_workers(queue: str) -> None:
    """Wake the workers of a queue, in this process and in others."""
    process.get(RunMayBeDue).set()
    publish(Topic.RUN_ENQUEUED, queue)
