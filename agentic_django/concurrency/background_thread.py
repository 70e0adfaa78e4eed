"""The base class of all background threads of a process.

A subclass guards its data with ``_condition`` and calls ``start`` for each new piece of work::

    class Printer(BackgroundThread):
        name = "agentic-printer"

        def __init__(self):
            super().__init__()
            self._lines = []

        def add(self, line):
            with self._condition:
                self._lines.append(line)
                self.start()

        def _run(self):
            while self._pause(1.0):
                ...  # print the lines; return when there are none

The thread begins with the first call of ``start`` and ends when ``_run`` returns. It is a daemon
thread, so it does not keep the process alive.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress

from django.db import Error, connections

__all__ = ["BackgroundThread", "RepeatingThread"]


class BackgroundThread:
    """A daemon thread that runs while it has work."""

    name = "agentic-background"
    """The name of the thread, for logs and debuggers."""

    def __init__(self) -> None:
        self._condition = threading.Condition()
        self._thread: threading.Thread | None = None
        self._is_requested = False
        self._is_stopped = False

    @property
    def is_running(self) -> bool:
        """Whether the thread exists now."""
        return self._thread is not None

    def start(self) -> None:
        """Start the thread, or wake it if it is running. The caller may hold ``_condition``."""
        with self._condition:
            self._is_requested = True
            if self._thread is None and not self._is_stopped:
                self._thread = threading.Thread(target=self._main, name=self.name, daemon=True)
                self._thread.start()
            self._condition.notify_all()

    def stop(self, timeout: float | None = None) -> None:
        """End the thread for good, and wait until it has finished its current work.

        ``timeout`` limits the wait, in seconds.
        """
        with self._condition:
            self._is_stopped, thread = True, self._thread
            self._condition.notify_all()
        if thread is not None:
            thread.join(timeout)

    def _run(self) -> None:
        """Do the work.

        Return after some time without work, or if ``_is_stopped`` is set. If ``start`` was called
        in the meantime, ``_run`` is called again, so that no work is left.
        """
        raise NotImplementedError

    def _pause(self, seconds: float) -> bool:
        """Wait. Return False immediately if the thread must end."""
        with self._condition:
            return not self._condition.wait_for(lambda: self._is_stopped, seconds)

    def _main(self) -> None:
        """Call ``_run`` once more for requests that arrived during its last call."""
        try:
            while True:
                with self._condition:
                    is_requested, self._is_requested = self._is_requested, False
                    if self._is_stopped or not is_requested:
                        self._thread = None
                        return
                try:
                    self._run()
                finally:
                    with suppress(Error):
                        connections.close_all()
        except BaseException:
            with self._condition:
                self._thread = None  # The next call of ``start`` starts another thread.
            raise


class RepeatingThread(BackgroundThread):
    """Calls a function at an interval, in seconds, until the thread is stopped.

    The function must catch its errors. An error that it raises ends the thread.
    """

    def __init__(self, name: str, interval: float, function: Callable[[], None]) -> None:
        super().__init__()
        self.name, self.interval, self.function = name, interval, function

    def _run(self) -> None:
        while self._pause(self.interval):
            self.function()
