"""One process that carries many runs at once: takes them, keeps them, and ends well.

The main thread claims runs and, once it is told to end, waits for those that run. A first signal
drains; a second one hands the runs back.
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
from agentic_django.worker.claim_loop import ClaimLoop
from agentic_django.worker.slots import RunNotifications, WorkerSlots, WorkerState
from agentic_django.worker.sources.database import DatabaseNotifications

__all__ = ["WorkerOptions", "WorkerProcess", "run_worker"]

_HAND_BACK_SECONDS = 10.0
"""How long handed-back runs may take to notice."""

_SAME_SIGNAL_SECONDS = 0.5
"""A terminal's Ctrl-C and a supervisor may send the same request twice."""


@dataclass(frozen=True)
class WorkerOptions:
    """How a worker's process is to work."""

    queue: str = "default"
    source: str = "rq"
    concurrency: int = 200
    records: int = 4
    """Threads, each with one database connection, for what the app records."""
    work: int = 16
    """Threads for synchronous tools, steps and factories, each with at most one connection."""
    is_burst: bool = False
    poll_seconds: float = 1.0


def run_worker(orders: WorkerOptions, say: Callable[[str], None], tell: Callable[[], None]) -> None:
    """Work until told to end; to be called in the main thread of a process of its own.

    ``say`` is for a person who watches; ``tell`` is called about once a second while the process
    works as it should.
    """
    WorkerProcess(orders, say, tell).work()
    say(f"Process {os.getpid()} has ended.")


class WorkerProcess:
    """A process's slots, its claim loop, and its shutdown."""

    def __init__(
        self, orders: WorkerOptions, say: Callable[[str], None], tell: Callable[[], None]
    ) -> None:
        self.duty = WorkerState(
            orders.queue, WorkerSlots(orders.concurrency), orders.is_burst, orders.poll_seconds
        )
        self.say, self.tell = say, tell
        self._asked = 0.0
        self._parent = os.getppid()
        self._beat = RepeatingThread("agentic-worker", 1.0, self._report_alive)
        self._swept_at = 0.0
        event_loop.use_thread_pools(records=orders.records, host_code=orders.work)
        runner.install_runner()
        connections.close_all()
        self.claim_loop = ClaimLoop(self.duty, _notifications(orders.source, orders.queue))

    def work(self) -> None:
        """Take and carry runs until told to end."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        self._beat.start()
        self.say(f"Process {os.getpid()} takes runs of {self.duty.queue!r}.")
        try:
            self.claim_loop.work()
        finally:
            self._drain()
            self._beat.stop(5)
            self.claim_loop.close()

    def _on_signal(self, number: int, _: Any) -> None:
        if self.duty.is_ending and time.monotonic() - self._asked > _SAME_SIGNAL_SECONDS:
            self.duty.leaving.set()
        if not self.duty.is_ending:
            self._asked = time.monotonic()
            self.duty.ending.set()

    def _drain(self) -> None:
        """Wait for what runs; hand it back if that is asked for."""
        self.duty.ending.set()
        self.say(f"Process {os.getpid()} is ending; runs that go on: {self.duty.slots.busy}.")
        while not self.duty.slots.wait_until_free(0.2):
            if self.duty.leaving.is_set():
                self.say(f"Process {os.getpid()} hands back runs: {heartbeat.lease_count()}.")
                event_loop.run_in_records_pool(heartbeat.release_all)
                self.duty.slots.wait_until_free(_HAND_BACK_SECONDS)
                return

    def _report_alive(self) -> None:
        """Sweep if it is time, and report that this process lives and its event loop responds."""
        self._mind_parent()
        try:
            if time.monotonic() - self._swept_at > recovery.sweep_interval():
                event_loop.run_in_records_pool(recovery.sweep_if_due)
                self._swept_at = time.monotonic()
            event_loop.start_on_loop(_nothing).result(30)
            self.tell()
        except Exception as error:  # noqa: BLE001 - the database or the loop may respond again
            logger.warning("The worker's beat failed: %r", error)

    def _mind_parent(self) -> None:
        """Drain if the supervisor is gone: another may have been started."""
        if os.getppid() != self._parent and not self.duty.is_ending:
            self.say(f"The supervisor of process {os.getpid()} is gone.")
            self.duty.ending.set()


async def _nothing() -> None:
    """Show that the loop turns."""
    await asyncio.sleep(0)


def _notifications(source: str, queue: str) -> RunNotifications:
    """Return the notifications of a source; without RQ installed, only those of the database."""
    if source == "rq":
        from agentic_django.worker.sources.rq import RQNotifications  # noqa: PLC0415 - an extra

        return RQNotifications(queue)
    return DatabaseNotifications(queue)
