"""Keeps the leases of the runs that this process holds, and notices those it has lost.

One thread for all runs of the process: a tool that blocks cannot stop it. It looks once a
second, so a run that is cancelled elsewhere ends here within two.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from concurrent.futures import thread as pools
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import cast

from django.db import Error, connections

from agentic_django.concurrency import event_loop
from agentic_django.concurrency.background_thread import BackgroundThread
from agentic_django.concurrency.process_state import process
from agentic_django.conf import settings
from agentic_django.engine import fenced_writes, lifecycle, transitions
from agentic_django.exceptions import StaleAttempt
from agentic_django.models import AgentRun
from agentic_django.signals import logger

__all__ = ["BEAT_SECONDS", "HeldAttempt", "held_count", "keep_lease", "release_all"]

BEAT_SECONDS = 1.0


@dataclass(eq=False, slots=True)
class HeldAttempt:
    """An attempt of this process, and the task that performs it."""

    run: AgentRun
    task: asyncio.Task[object]
    is_lost: bool = False
    is_over: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)

    def lose(self) -> None:
        """Stop performing: the run belongs to somebody else, or to nobody."""
        with self.lock:
            if not self.is_over:
                self.is_lost = self.run.is_lost = True
                event_loop.cancel_task(self.task)

    def end(self) -> None:
        """From now on the task is at other things, and is let alone."""
        with self.lock:
            self.is_over = True


class Heartbeat(BackgroundThread):
    """Renews the leases of the attempts of this process; runs while there are any."""

    name = "agentic-heartbeat"

    def __init__(self) -> None:
        super().__init__()
        self._held: set[HeldAttempt] = set()

    def add(self, held: HeldAttempt) -> None:
        """Keep an attempt."""
        with self._condition:
            self._held.add(held)
            self.start()

    def remove(self, held: HeldAttempt) -> None:
        """Stop keeping an attempt."""
        with self._condition:
            self._held.discard(held)

    def held(self) -> set[HeldAttempt]:
        """Return what is held now."""
        with self._condition:
            return set(self._held)

    def _run(self) -> None:
        renewed = time.monotonic()
        while self._pause(_interval()) and (held := self.held()):
            try:
                if _is_ending():
                    _hand_back(held)
                elif _since(renewed) >= settings.LEASE_SECONDS / 3:
                    _renew(held, _since(renewed))
                    renewed = time.monotonic()
                _drop_lost(held)
            except Exception as error:  # noqa: BLE001 - leases outlast a short absence of the database
                logger.warning("Heartbeat failed: %r", error)
            with suppress(Error):
                connections.close_all()


def _is_ending() -> bool:
    """Whether the interpreter is going down: it waits for the threads of pools, ours too.

    Then its main thread has ended, or the standard library has told its pools to; the latter
    has no public name.
    """
    return not threading.main_thread().is_alive() or getattr(pools, "_shutdown", False)


def _interval() -> float:
    return min(BEAT_SECONDS, settings.LEASE_SECONDS / 3)


def _since(moment: float) -> float:
    return time.monotonic() - moment


def _renew(held: set[HeldAttempt], seconds: float) -> None:
    fenced_writes.renew_leases([one.run.pk for one in held], seconds)


def _drop_lost(held: set[HeldAttempt]) -> None:
    running = transitions.run_rows().running().filter(pk__in=[h.run.pk for h in held])
    present = set(running.values_list("pk", "attempt"))
    for one in held:
        if (one.run.pk, one.run.attempt) not in present:
            one.lose()


def _hand_back(held: set[HeldAttempt]) -> None:
    """The process is ending: let another go on at once rather than after the lease."""
    for one in held:
        try:
            lifecycle.release(one.run)
        except StaleAttempt:
            logger.info("Run %s had ended when this process did", one.run.pk)
        one.lose()


def held_count() -> int:
    """Return how many runs this process holds."""
    return len(process.get(Heartbeat).held())


def release_all() -> None:
    """Put all runs that this process holds back in line, for it is ending."""
    _hand_back(process.get(Heartbeat).held())


@contextmanager
def keep_lease(run: AgentRun) -> Iterator[HeldAttempt]:
    """Keep a run's lease while its attempt is performed by the current task."""
    held = HeldAttempt(run, cast("asyncio.Task[object]", asyncio.current_task()))
    if not run.joined_transaction:  # Else nobody outside of that transaction can see the claim.
        process.get(Heartbeat).add(held)
    try:
        yield held
    finally:
        held.end()
        process.get(Heartbeat).remove(held)
