"""Renews the leases of this process's attempts, and cancels attempts that have lost their run.

One thread serves all attempts of the process, so a tool that blocks cannot stop it. It checks once
a second. If a run is cancelled elsewhere, its task ends within two seconds.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import cast

from django.db import Error, connections

from agentic_django.concurrency import event_loop
from agentic_django.concurrency.background_thread import BackgroundThread
from agentic_django.concurrency.process_state import process
from agentic_django.conf import settings
from agentic_django.engine import fenced_writes, lifecycle
from agentic_django.engine.attempt import Attempt
from agentic_django.engine.run_rows import run_rows
from agentic_django.exceptions import StaleAttempt
from agentic_django.signals import logger

__all__ = ["BEAT_SECONDS", "Lease", "keep_lease", "lease_count", "release_all"]

BEAT_SECONDS = 1.0


class Lease:
    """The lease of an attempt of this process, and the task that executes it."""

    def __init__(self, attempt: Attempt, task: asyncio.Task[object]) -> None:
        self.attempt = attempt
        self.task = task
        self._lock = threading.Lock()
        self._has_ended = False

    def lose(self) -> None:
        """Cancel the task, because the attempt has lost its run."""
        with self._lock:
            if not self._has_ended:
                self.attempt.has_lost_run = True
                event_loop.cancel_task(self.task)

    def end(self) -> None:
        """Do not cancel the task from now on, because it has other work."""
        with self._lock:
            self._has_ended = True


class Heartbeat(BackgroundThread):
    """Renews the leases of the attempts of this process. Runs while it has leases."""

    name = "agentic-heartbeat"

    def __init__(self) -> None:
        super().__init__()
        self._leases: set[Lease] = set()

    def add(self, lease: Lease) -> None:
        """Renew a lease from now on."""
        with self._condition:
            self._leases.add(lease)
            self.start()

    def remove(self, lease: Lease) -> None:
        """Stop renewing a lease."""
        with self._condition:
            self._leases.discard(lease)

    def leases(self) -> set[Lease]:
        """Return the leases that are renewed now."""
        with self._condition:
            return set(self._leases)

    def _run(self) -> None:
        renewed = time.monotonic()
        while self._pause(min(BEAT_SECONDS, settings.LEASE_SECONDS / 3)):
            if not (leases := self.leases()):
                return
            try:
                elapsed = time.monotonic() - renewed
                if event_loop.is_interpreter_exiting():
                    _release(leases)
                elif elapsed >= settings.LEASE_SECONDS / 3:
                    run_ids = [lease.attempt.run.pk for lease in leases]
                    fenced_writes.renew_leases(run_ids, elapsed)
                    renewed = time.monotonic()
                rows = run_rows().running()
                rows = rows.filter(pk__in=[lease.attempt.run.pk for lease in leases])
                running = set(rows.values_list("pk", "attempt"))
                for lease in leases:
                    if (lease.attempt.run.pk, lease.attempt.number) not in running:
                        lease.lose()
            except Exception as error:  # noqa: BLE001 - leases outlast a short absence of the database
                logger.warning("Heartbeat failed: %r", error)
            with suppress(Error):
                connections.close_all()


def _release(leases: set[Lease]) -> None:
    """Requeue runs, so that another process can resume them before their leases expire."""
    for lease in leases:
        try:
            lifecycle.release(lease.attempt)
        except StaleAttempt:
            logger.info("Run %s had ended when this process did", lease.attempt.run.pk)
        lease.lose()


def lease_count() -> int:
    """Return how many attempts this process executes."""
    return len(process.get(Heartbeat).leases())


def release_all() -> None:
    """Requeue all runs of this process, because it is shutting down."""
    _release(process.get(Heartbeat).leases())


@contextmanager
def keep_lease(attempt: Attempt) -> Iterator[Lease]:
    """Renew the lease of an attempt while the current task executes it."""
    lease = Lease(attempt, cast("asyncio.Task[object]", asyncio.current_task()))
    if not attempt.joined_transaction:  # Else no other connection can see the claim.
        process.get(Heartbeat).add(lease)
    try:
        yield lease
    finally:
        lease.end()
        process.get(Heartbeat).remove(lease)
