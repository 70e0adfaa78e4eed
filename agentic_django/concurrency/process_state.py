"""Holds the objects that each process has once: the event loop, background threads, pools.

``process.get(Heartbeat)`` returns this process's ``Heartbeat``. The first call creates it. No
module keeps one of these objects in its own variable, because a forked child must not use it. The
child has a copy of the object, but not its threads. The only fork hook of the app is here.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

from agentic_django.concurrency.background_thread import BackgroundThread

__all__ = ["Process", "process"]


class Process:
    """Objects by the class or function that creates them."""

    def __init__(self) -> None:
        self.reset()

    def get[T](self, factory: Callable[[], T]) -> T:
        """Return the process's object of a factory. The first call creates it."""
        with self._lock:
            if factory not in self._objects:
                self._objects[factory] = factory()
            found: T = self._objects[factory]
            return found

    def reset(self) -> None:
        """Drop all objects without stopping them, because a forked child has no threads to stop."""
        self._lock = threading.RLock()
        self._objects: dict[Callable[[], Any], Any] = {}

    def stop(self) -> None:
        """Stop all background threads and drop them. The next use creates new ones.

        The event loop and the thread pools stay.
        """
        while True:
            with self._lock:
                objects = self._objects.items()
                threads = {key: each for key, each in objects if isinstance(each, BackgroundThread)}
                for key in threads:
                    del self._objects[key]
            if not threads:
                return
            for thread in threads.values():  # The last work of a thread may start another thread.
                thread.stop()


process = Process()

if hasattr(os, "register_at_fork"):  # Windows has no fork.
    os.register_at_fork(after_in_child=process.reset)
