"""The command that starts worker processes, which execute many runs at once."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from django.conf import settings as django_settings
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections
from django.utils import autoreload

from agentic_django import registry
from agentic_django.conf import settings
from agentic_django.engine import queues
from agentic_django.worker import process
from agentic_django.worker.supervisor import Supervisor


class Command(BaseCommand):
    """``agentic_django_worker``. It may run on several machines, and beside stock workers."""

    help = (
        "Executes many runs at once in each process. After SIGTERM it ends when its runs have "
        "ended. A second SIGTERM requeues them for other workers."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the options."""
        parser.add_argument("--queue", default="default", help="The queue whose runs are executed.")
        parser.add_argument(
            "--source",
            choices=("rq", "database"),
            help="Where runs are enqueued: to RQ or to their table; by default as TASKS says.",
        )
        add = partial(parser.add_argument, type=_positive)
        add("--concurrency", default=200, help="Concurrent runs in each process (200).")
        add("--processes", default=1, help="Number of processes (1).")
        add(
            "--connections", default=4, help="Database connections of each process for records (4)."
        )
        add("--threads", default=16, help="Threads of each process for synchronous tools (16).")
        parser.add_argument(
            "--poll-interval",
            type=_seconds,
            default=1.0,
            help="Seconds between polls of the table, for runs without a notification (1).",
        )
        parser.add_argument("--burst", action="store_true", help="End when no run is left.")
        parser.add_argument(
            "--noreload", action="store_true", help="Do not restart when code changes."
        )
        parser.add_argument(
            "--health-file", type=Path, help="A file that is touched each second while all is well."
        )

    def handle(self, **options: Any) -> None:
        """Start the processes, and restart those that end unexpectedly."""
        worker_options = process.WorkerOptions(
            queue=options["queue"],
            source=options["source"] or _default_source(),
            concurrency=options["concurrency"],
            records=options["connections"],
            work=options["threads"],
            is_burst=options["burst"],
            poll_seconds=options["poll_interval"],
        )
        _check_options(worker_options)
        reloads = django_settings.DEBUG and not options["noreload"] and not options["burst"]
        registry.keys()  # Import the agents once, before the fork.
        connections.close_all()
        supervisor = Supervisor(
            partial(process.run_worker, worker_options, self._write),
            options["processes"],
            health_file=options["health_file"],
            is_stale=ChangeDetector(self.stderr.write).has_changed if reloads else lambda: False,
            log=self.stderr.write,
        )
        self._write(
            f"Executing runs of {worker_options.queue!r} from {worker_options.source}: "
            f"{options['processes']} × {worker_options.concurrency} at once."
        )
        if supervisor.run():
            self._write("The code has changed. Restarting.")
            os.execv(sys.executable, autoreload.get_child_arguments())  # noqa: S606 - ourselves

    def _write(self, text: str) -> None:
        self.stdout.write(text)
        self.stdout.flush()


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ArgumentTypeError("must be 1 or more")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0.01 <= number <= 3600:
        raise ArgumentTypeError("must be from 0.01 to 3600")
    return number


def _default_source() -> str:
    """Return the source that the task backend needs."""
    if queues.delivery() is queues.Delivery.RQ:
        return "rq"
    if queues.delivery() is queues.Delivery.ROWS:
        return "database"
    raise CommandError(
        f"TASKS[{settings.TASK_BACKEND!r}] is {type(queues.backend()).__name__}, which has its own "
        "workers. Use django_tasks_rq.RQBackend, or agentic_django.worker.backend.RowBackend, or "
        "pass --source database."
    )


def _check_options(worker_options: process.WorkerOptions) -> None:
    """Raise CommandError if the processes could not work."""
    if not hasattr(os, "fork"):
        raise CommandError("This needs a system with fork(): Linux, macOS or another Unix.")
    backend = queues.backend()
    if backend.queues and worker_options.queue not in backend.queues:
        known = ", ".join(sorted(backend.queues))
        raise CommandError(f"Unknown queue {worker_options.queue!r}. Choose one of: {known}.")
    if worker_options.source != "rq":
        return
    missing = [name for name in ("rq", "django_rq", "django_tasks_rq") if not find_spec(name)]
    if missing:
        raise CommandError(f"Install agentic-django[rq]: {', '.join(missing)} cannot be imported.")


class ChangeDetector:
    """Detects that the file of an imported module has changed since the process started."""

    def __init__(self, write: Callable[[str], Any]) -> None:
        self.write = write
        self._times = dict(_modification_times())

    def has_changed(self) -> bool:
        """Whether files have changed since the last call and the project can be imported."""
        now = dict(_modification_times())
        changed = [path for path, time in now.items() if self._times.get(path, time) != time]
        self._times = now
        return bool(changed) and self._is_importable()

    def _is_importable(self) -> bool:
        code = "import django; django.setup()"
        tried = subprocess.run(  # noqa: S603 - our own interpreter
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        if tried.returncode:
            last = tried.stderr.strip().rpartition("\n")[2]
            self.write(f"The changed code cannot be imported. Continuing with the old code: {last}")
        return tried.returncode == 0


def _modification_times() -> list[tuple[Path, float]]:
    found = []
    for path in autoreload.iter_all_python_module_files():
        try:
            found.append((path, path.stat().st_mtime))
        except OSError:
            continue
    return found
