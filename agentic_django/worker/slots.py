"""How many runs a worker's process carries at once, and until when it takes new ones."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

__all__ = ["RunNotifications", "WorkerSlots", "WorkerState"]


class WorkerSlots:
    """Places for runs; a thread may wait for one to be free."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._busy = 0
        self._changed = threading.Condition()

    @property
    def busy(self) -> int:
        """How many are taken."""
        return self._busy

    def take(self, at_most: int = 1, *, seconds: float = 1.0) -> int:
        """Wait until one is free, for so long; return how many were taken, 0 if none was free."""
        with self._changed:
            self._changed.wait_for(lambda: self._busy < self.count, seconds)
            taken = max(0, min(at_most, self.count - self._busy))
            self._busy += taken
            return taken

    def give_back(self, number: int = 1) -> None:
        """Free places."""
        with self._changed:
            self._busy -= number
            self._changed.notify_all()

    def wait_until_free(self, seconds: float) -> bool:
        """Wait until none is taken; False if that takes longer."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy, seconds)


@dataclass
class WorkerState:
    """What a process is to do, and how it is told to end."""

    queue: str
    slots: WorkerSlots
    is_burst: bool = False
    poll_seconds: float = 1.0
    ending: threading.Event = field(default_factory=threading.Event)
    """No new work is taken."""
    leaving: threading.Event = field(default_factory=threading.Event)
    """What runs is handed back, too."""

    @property
    def is_ending(self) -> bool:
        """Whether no new work is taken."""
        return self.ending.is_set()


class RunNotifications(Protocol):
    """Wakes the claim loop when a run may be due, by setting ``backend.RunMayBeDue``."""

    is_suspended: bool
    """Whether the worker is not to claim runs for now."""

    def start(self) -> None:
        """Start to wake the claim loop."""
        ...

    def claimed(self, task_ids: Sequence[str]) -> None:
        """Take note of the tasks that were enqueued for the runs of a claim."""
        ...

    def stop(self) -> None:
        """Stop; called after all attempts have ended."""
        ...
