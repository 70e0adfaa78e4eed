"""Holds the objects of which each process has one: the event loop, background threads, pools.

``process.get(Heartbeat)`` returns this process's ``Heartbeat``, and makes it at the first call.
No module keeps such an object in a variable of its own, because a forked child must not use it:
the child has a copy of the object, but not its threads. The only fork hook of the app is here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from agentic_django.concurrency.background_thread import BackgroundThread

__all__ = ["Process", "process"]


class Process:
    """Objects by the class, or the function, that makes them."""

    def __init__(self) -> None:
        self.reset()

    def get[T](self, factory: Callable[[], T]) -> T:
        """Return the process's object of a factory; call the factory if there is none yet."""
        with self._lock:
            if factory not in self._objects:
                self._objects[factory] = factory()
            found: T = self._objects[factory]
            return found

    def reset(self) -> None:
        """Drop all objects without stopping them: a forked child has no threads to stop."""
        self._lock = threading.RLock()
        self._objects: dict[Callable[[], Any], Any] = {}

    def stop(self) -> None:
        """Stop all background threads and drop them; the next use makes new ones.

        The event loop and the thread pools stay.
        """
        while threads := self._drop_threads():  # A thread's last work may start another one.
            for thread in threads:
                thread.stop()

    def _drop_threads(self) -> list[BackgroundThread]:
        with self._lock:
            found = {
                factory: each
                for factory, each in self._objects.items()
                if isinstance(each, BackgroundThread)
            }
            for factory in found:
                del self._objects[factory]
        return list(found.values())


process = Process()

if hasattr(os, "register_at_fork"):  # Windows has no fork.
    os.register_at_fork(after_in_child=process.reset)
