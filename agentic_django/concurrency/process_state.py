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
        while True:
            with self._lock:
                objects = self._objects.items()
                threads = {key: each for key, each in objects if isinstance(each, BackgroundThread)}
                for key in threads:
                    del self._objects[key]
            if not threads:
                return
            for thread in threads.values():  # A thread's last work may start another one.
                thread.stop()


process = Process()

if hasattr(os, "register_at_fork"):  # Windows has no fork.
    os.register_at_fork(after_in_child=process.reset)
