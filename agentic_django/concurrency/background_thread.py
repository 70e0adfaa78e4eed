"""A thread of the process that is there while there is something for it to do."""

from __future__ import annotations

import threading

__all__ = ["BackgroundThread"]


class BackgroundThread:
    """Work in a thread of its own, begun when there is some; the work ends itself when idle.

    What it works on is guarded by ``_changed``. When ``_run`` is about to return it sets
    ``_thread`` to None, with ``_changed`` held, so that what comes next begins another.
    """

    name = "agentic-background"
    """The thread's."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._stopped = False

    def stop(self) -> None:
        """End the thread, and wait for what it is just doing."""
        with self._changed:
            self._stopped, thread = True, self._thread
            self._changed.notify_all()
        if thread is not None:
            thread.join()

    def _begin(self) -> None:
        """Wake the thread, or start it; with ``_changed`` held."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name=self.name, daemon=True)
            self._thread.start()
        self._changed.notify_all()

    def _run(self) -> None:
        raise NotImplementedError
