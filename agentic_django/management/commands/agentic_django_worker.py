"""Carry out many runs at once."""

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
    """``agentic_django_worker``: beside stock workers, and at any number of places."""

    help = (
        "Carries out runs, many at once in each process. SIGTERM ends it when its runs have "
        "ended; a second SIGTERM hands them back to other workers."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        """How much is done at once, and where it comes from."""
        parser.add_argument("--queue", default="default", help="The queue to take runs from.")
        parser.add_argument(
            "--source",
            choices=("rq", "database"),
            help="Where runs are enqueued: to RQ or to their table; by default as TASKS says.",
        )
        add = partial(parser.add_argument, type=_positive)
        add("--concurrency", default=200, help="Runs at once in each process (200).")
        add("--processes", default=1, help="How many processes (1).")
        add("--connections", default=4, help="Database connections of a process for records (4).")
        add("--threads", default=16, help="Threads of a process for synchronous tools (16).")
        parser.add_argument(
            "--poll-interval",
            type=_seconds,
            default=1.0,
            help="Seconds between polls of the table, for runs without a notification (1).",
        )
        parser.add_argument("--burst", action="store_true", help="End when no run is left.")
        parser.add_argument(
            "--noreload", action="store_true", help="Do not start anew when code changes."
        )
        parser.add_argument(
            "--health-file", type=Path, help="A file that is touched each second while all is well."
        )

    def handle(self, **options: Any) -> None:
        """Start the processes and keep them going."""
        orders = process.WorkerOptions(
            queue=options["queue"],
            source=options["source"] or _default_source(),
            concurrency=options["concurrency"],
            records=options["connections"],
            work=options["threads"],
            is_burst=options["burst"],
            poll_seconds=options["poll_interval"],
        )
        _check(orders)
        reloads = django_settings.DEBUG and not options["noreload"] and not options["burst"]
        registry.keys()  # Import what the children share, once.
        connections.close_all()
        supervisor = Supervisor(
            partial(process.run_worker, orders, self._say),
            options["processes"],
            health_file=options["health_file"],
            is_stale=Changes(self.stderr.write).seen if reloads else lambda: False,
            log=self.stderr.write,
        )
        self._say(
            f"Carrying out runs of {orders.queue!r} from {orders.source}: "
            f"{options['processes']} × {orders.concurrency} at once."
        )
        if supervisor.run():
            self._say("The code has changed; starting anew.")
            os.execv(sys.executable, autoreload.get_child_arguments())  # noqa: S606 - ourselves

    def _say(self, text: str) -> None:
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


def _check(orders: process.WorkerOptions) -> None:
    """Refuse what could not work, before any process is started."""
    if not hasattr(os, "fork"):
        raise CommandError("This needs a system with fork(): Linux, macOS or another Unix.")
    backend = queues.backend()
    if backend.queues and orders.queue not in backend.queues:
        known = ", ".join(sorted(backend.queues))
        raise CommandError(f"There is no queue {orders.queue!r}. Choose one of: {known}.")
    if orders.source != "rq":
        return
    missing = [name for name in ("rq", "django_rq", "django_tasks_rq") if not find_spec(name)]
    if missing:
        raise CommandError(f"Install agentic-django[rq]: {', '.join(missing)} cannot be imported.")


class Changes:
    """Notices that a module's file has changed since the process started."""

    def __init__(self, write: Callable[[str], Any]) -> None:
        self.write = write
        self._seen = dict(_files())

    def seen(self) -> bool:
        """Whether there are changes, with which the project can still be imported."""
        now = dict(_files())
        changed = [path for path, time in now.items() if self._seen.get(path, time) != time]
        self._seen = now
        return bool(changed) and self._is_importable()

    def _is_importable(self) -> bool:
        code = "import django; django.setup()"
        tried = subprocess.run(  # noqa: S603 - our own interpreter
            [sys.executable, "-c", code], capture_output=True, text=True, check=False
        )
        if tried.returncode:
            last = tried.stderr.strip().rpartition("\n")[2]
            self.write(f"The changed code cannot be imported; going on with the old: {last}")
        return tried.returncode == 0


def _files() -> list[tuple[Path, float]]:
    found = []
    for path in autoreload.iter_all_python_module_files():
        try:
            found.append((path, path.stat().st_mtime))
        except OSError:
            continue
    return found
