"""Execute runs, many at once in each process."""

from __future__ import annotations

import os
import subprocess
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable
from contextlib import suppress
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
from agentic_django.worker.process import WorkerOptions, run_worker
from agentic_django.worker.supervisor import Supervisor


class Command(BaseCommand):
    """Checks the options, then supervises worker processes until they have ended."""

    help = (
        "Executes runs, many at once in each process. At the first SIGTERM the worker finishes its "
        "runs and exits. At the second one it releases them, and other workers resume them."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """Add the options."""
        parser.add_argument("--queue", default="default", help="The queue to claim runs from.")
        parser.add_argument(
            "--source",
            choices=("rq", "database"),
            help="How the worker finds new runs. The default depends on TASKS.",
        )
        add = partial(parser.add_argument, type=_positive)
        add("--concurrency", default=200, help="Runs at once in each process (200).")
        add("--processes", default=1, help="Number of processes (1).")
        add("--connections", default=4, help="Database connections for writes, per process (4).")
        add("--threads", default=16, help="Threads for synchronous tools, per process (16).")
        parser.add_argument(
            "--poll-interval",
            type=_seconds,
            default=1.0,
            help="Seconds between polls for runs that no notification announced (1).",
        )
        parser.add_argument("--burst", action="store_true", help="Exit when no run is left.")
        parser.add_argument(
            "--noreload", action="store_true", help="Do not restart when code changes."
        )
        parser.add_argument(
            "--health-file",
            type=Path,
            help="A file that is written each second while all processes are healthy.",
        )

    def handle(self, **options: Any) -> None:
        """Start the processes, and replace those that die, until a signal or the end of a burst."""
        by_delivery = {queues.Delivery.RQ: "rq", queues.Delivery.ROWS: "database"}
        worker_options = WorkerOptions(
            queue=options["queue"],
            source=options["source"] or by_delivery.get(queues.delivery(), ""),
            concurrency=options["concurrency"],
            connections=options["connections"],
            threads=options["threads"],
            is_burst=options["burst"],
            poll_seconds=options["poll_interval"],
        )
        _check_options(worker_options)
        reloads = django_settings.DEBUG and not options["noreload"] and not options["burst"]
        registry.keys()  # Import the agents once, before the processes are forked.
        connections.close_all()
        supervisor = Supervisor(
            partial(run_worker, worker_options, self._write),
            options["processes"],
            health_file=options["health_file"],
            is_stale=ChangeDetector(self.stderr.write).has_changed if reloads else lambda: False,
            log=self.stderr.write,
        )
        self._write(
            f"Executing runs of queue {worker_options.queue!r}, source {worker_options.source}. "
            f"Processes: {options['processes']}, runs at once in each: "
            f"{worker_options.concurrency}."
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


def _check_options(options: WorkerOptions) -> None:
    """Raise CommandError for options with which the processes could not work."""
    if not hasattr(os, "fork"):
        raise CommandError("This command needs fork(): run it on Linux, macOS or another Unix.")
    backend = queues.backend()
    if not options.source:
        raise CommandError(
            f"TASKS[{settings.TASK_BACKEND!r}] is {type(backend).__name__}, which has its own "
            "workers. Use django_tasks_rq.RQBackend, or "
            "agentic_django.worker.backend.RowBackend, or pass --source database."
        )
    if backend.queues and options.queue not in backend.queues:
        known = ", ".join(sorted(backend.queues))
        raise CommandError(f"Unknown queue {options.queue!r}. Choose one of: {known}.")
    if options.source != "rq":
        return
    missing = [name for name in ("rq", "django_rq", "django_tasks_rq") if not find_spec(name)]
    if missing:
        raise CommandError(f"Cannot import {', '.join(missing)}. Install agentic-django[rq].")


class ChangeDetector:
    """Notices changes of the imported modules' files. ``log`` shows why changes are ignored."""

    def __init__(self, log: Callable[[str], Any]) -> None:
        self.log = log
        self._modified = _modification_times()

    def has_changed(self) -> bool:
        """Whether a file has changed since the last call, and the project can be imported."""
        before, self._modified = self._modified, _modification_times()
        if all(before.get(path, time) == time for path, time in self._modified.items()):
            return False
        imported = subprocess.run(
            [sys.executable, "-c", "import django; django.setup()"],
            capture_output=True,
            text=True,
            check=False,
        )
        if imported.returncode:
            error = imported.stderr.strip().rpartition("\n")[2]
            self.log(f"Cannot import the changed code. Continuing with the old code: {error}")
        return imported.returncode == 0


def _modification_times() -> dict[Path, float]:
    times = {}
    for path in autoreload.iter_all_python_module_files():
        with suppress(OSError):  # The file was deleted.
            times[path] = path.stat().st_mtime
    return times
