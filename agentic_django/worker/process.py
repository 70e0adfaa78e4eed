"""One worker process: executes many runs at once, and finishes or releases them when it stops.

The main thread claims runs. At the first SIGTERM or SIGINT, the process stops claiming and waits
for its runs to end. At the second signal, it releases its runs, and other workers resume them.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.db import connections

from agentic_django.concurrency import event_loop
from agentic_django.concurrency.background_thread import RepeatingThread
from agentic_django.engine import heartbeat, recovery
from agentic_django.openai_agents import runner
from agentic_django.signals import logger
from agentic_django.worker.claim_loop import ClaimLoop, RunNotifications
from agentic_django.worker.slots import WorkerSlots, WorkerState
from agentic_django.worker.sources.database import DatabaseNotifications

__all__ = ["WorkerMonitor", "WorkerOptions", "WorkerProcess", "run_worker"]

_RELEASE_SECONDS = 10.0
"""The longest wait for the attempts of released runs to end."""

_SAME_SIGNAL_SECONDS = 0.5
"""Signals within this time count as one, because a terminal and a supervisor may both send it."""

_RESPONSE_SECONDS = 30.0
"""The event loop is healthy if it executes a new task within this time."""

_STOP_SECONDS = 5.0


@dataclass(frozen=True)
class WorkerOptions:
    """The options of ``agentic_django_worker`` that apply to each of its processes."""

    queue: str
    source: str
    """``"rq"`` or ``"database"``."""
    concurrency: int
    connections: int
    """Threads for the writes of the app, each with one database connection."""
    threads: int
    """Threads for synchronous tools, steps and factories, each with at most one connection."""
    is_burst: bool
    poll_seconds: float


def run_worker(
    options: WorkerOptions, write: Callable[[str], None], report_healthy: Callable[[], None]
) -> None:
    """Execute runs until a signal ends the process. Call it in the main thread of a new process.

    ``write`` shows a line of text to the operator. ``report_healthy`` is called about once a
    second, while the database can be reached and the event loop responds.
    """
    WorkerProcess(options, write, report_healthy).run()
    write(f"Process {os.getpid()} has exited.")


class WorkerProcess:
    """The slots, the claim loop and the monitor of this process, and its shutdown."""

    def __init__(
        self,
        options: WorkerOptions,
        write: Callable[[str], None],
        report_healthy: Callable[[], None],
    ) -> None:
        self.write = write
        self.state = WorkerState(
            options.queue,
            WorkerSlots(options.concurrency),
            options.is_burst,
            options.poll_seconds,
        )
        self.monitor = WorkerMonitor(self.state, write, report_healthy)
        self._first_signal_at = 0.0
        event_loop.use_thread_pools(records=options.connections, host_code=options.threads)
        runner.install_runner()
        connections.close_all()
        notifications: RunNotifications
        if options.source == "rq":
            from agentic_django.worker.sources import rq  # noqa: PLC0415 - RQ is an extra

            notifications = rq.RQNotifications(options.queue)
        else:
            notifications = DatabaseNotifications(options.queue)
        self.claim_loop = ClaimLoop(self.state, notifications)

    def run(self) -> None:
        """Claim and execute runs until a signal, or the end of a burst; then drain."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self.monitor.start()
        self.write(f"Process {os.getpid()} claims runs of queue {self.state.queue!r}.")
        try:
            self.claim_loop.run()
        finally:
            self._drain()
            self.monitor.stop(_STOP_SECONDS)
            self.claim_loop.close()

    def _on_signal(self, number: int, _: Any) -> None:
        """Drain at the first signal; release the runs at the second."""
        if not self.state.draining.is_set():
            self._first_signal_at = time.monotonic()
            self.state.draining.set()
        elif time.monotonic() - self._first_signal_at > _SAME_SIGNAL_SECONDS:
            self.state.releasing.set()

    def _drain(self) -> None:
        """Wait until all attempts have ended; after a second signal, release their runs."""
        pid, slots = os.getpid(), self.state.slots
        self.state.draining.set()
        self.write(f"Process {pid} claims no more runs and finishes {slots.busy}.")
        while not slots.wait_until_idle(0.2):
            if self.state.releasing.is_set():
                self.write(f"Process {pid} releases {heartbeat.lease_count()} runs.")
                event_loop.run_in_records_pool(heartbeat.release_all)
                slots.wait_until_idle(_RELEASE_SECONDS)
                return


class WorkerMonitor(RepeatingThread):
    """Once a second, checks the process and its supervisor, and sweeps for orphaned runs."""

    def __init__(
        self,
        state: WorkerState,
        write: Callable[[str], None],
        report_healthy: Callable[[], None],
    ) -> None:
        super().__init__("agentic-worker", 1.0, self.check)
        self.state = state
        self.write = write
        self.report_healthy = report_healthy
        self._supervisor_pid = os.getppid()
        self._swept_at = 0.0

    def check(self) -> None:
        """Drain if the supervisor has died. Sweep if it is time. Report if the loop responds."""
        if os.getppid() != self._supervisor_pid and not self.state.draining.is_set():
            self.write(f"The supervisor of process {os.getpid()} has died.")
            self.state.draining.set()  # A new supervisor may have already started processes.
        try:
            if time.monotonic() - self._swept_at > recovery.sweep_interval():
                event_loop.run_in_records_pool(recovery.sweep_if_due)
                self._swept_at = time.monotonic()
            event_loop.start_on_loop(lambda: asyncio.sleep(0)).result(_RESPONSE_SECONDS)
            self.report_healthy()
        except Exception as error:  # noqa: BLE001 - the database or the loop may respond again
            logger.warning("The worker process is not healthy: %r", error)
