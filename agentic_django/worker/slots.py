"""Counts the runs that a worker process executes, and holds the requests to stop it.

The claim loop acquires slots before it claims runs. The end of each attempt releases one.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

__all__ = ["WorkerSlots", "WorkerState"]


class WorkerSlots:
    """A fixed number of slots. Each run that the process executes occupies one."""

    def __init__(self, count: int) -> None:
        self.count = count
        self._busy = 0
        self._changed = threading.Condition()

    @property
    def busy(self) -> int:
        """The number of slots that are acquired now."""
        return self._busy

    def acquire(self, most: int, *, timeout: float) -> int:
        """Acquire up to ``most`` slots, as many as are free, and return their number.

        If all slots are busy, wait until one is free, at most ``timeout`` seconds. Then return 0.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._busy < self.count, timeout)
            acquired = max(0, min(most, self.count - self._busy))
            self._busy += acquired
            return acquired

    def release(self, number: int = 1) -> None:
        """Release slots, and wake the threads that wait for them."""
        with self._changed:
            self._busy -= number
            self._changed.notify_all()

    def wait_until_idle(self, timeout: float) -> bool:
        """Wait until no slot is busy. Return False if ``timeout`` seconds pass first."""
        with self._changed:
            return self._changed.wait_for(lambda: not self._busy, timeout)


@dataclass
class WorkerState:
    """The slots of a worker process, how it claims runs, and whether it must stop."""

    queue: str
    slots: WorkerSlots
    is_burst: bool
    """Whether the process ends when no run is due or running."""
    poll_seconds: float
    draining: threading.Event = field(default_factory=threading.Event)
    """Set when the process must not claim more runs."""
    releasing: threading.Event = field(default_factory=threading.Event)
    """Set when the process must also release the runs that it executes."""
