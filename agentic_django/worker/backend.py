"""The task backend for sites without a queue: a pending run's row is its own task.

To use it, set ``BACKEND`` in ``TASKS`` to ``agentic_django.worker.backend.RowBackend`` and run
``agentic_django_worker --source database``.
"""

from __future__ import annotations

import threading
from typing import Any

from django.db import connections
from django.tasks import TaskResult, TaskResultStatus
from django.tasks.backends.base import BaseTaskBackend
from django.tasks.exceptions import InvalidTask
from django.utils import timezone

from agentic_django.conf import settings

__all__ = ["CHANNEL", "RowBackend", "arrivals"]

CHANNEL = "agentic_django_runs"
"""The PostgreSQL channel on which workers hear of new runs; the payload is the queue's name."""

arrivals = threading.Event()
"""Set when this process has sent a run, for a worker in it."""

_TASK = "agentic_django.tasks.execute"


class RowBackend(BaseTaskBackend):
    """Tells workers that a run is due; where PostgreSQL cannot, they find it when they look."""

    supports_async_task = True
    rows_are_queue = True
    """See ``engine.queues.rows_are_queue``."""

    def validate_task(self, task: Any) -> None:
        """Raise InvalidTask for any task but the one that carries a run."""
        super().validate_task(task)
        if task.module_path != _TASK:
            raise InvalidTask(f"RowBackend delivers runs only, not {task.module_path}.")

    def enqueue(self, task: Any, args: Any, kwargs: Any) -> Any:
        """Tell the workers of the task's queue; the result has no id, for nothing is kept."""
        self.validate_task(task)
        notify(task.queue_name)
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


def notify(queue: str) -> None:
    """Wake the workers that look after a queue, wherever they are."""
    arrivals.set()
    connection = connections[settings.DATABASE]
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_notify(%s, %s)", [CHANNEL, queue])
