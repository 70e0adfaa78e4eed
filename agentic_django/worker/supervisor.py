"""Runs a function in child processes, replaces those that die, and forwards signals to them.

The supervisor does not know what the function does. It has one thread, so it can fork safely.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

__all__ = ["ChildProcess", "HealthFile", "Supervisor"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_SHORT_LIFE_SECONDS = 10.0
"""A child that dies within this time lengthens the pause before its replacement starts."""

_LONGEST_PAUSE = 30.0
"""The longest pause, in seconds, before the replacement of a child starts."""

_SECOND_SIGNAL_SECONDS = 1.0
"""The time between forwarded signals, so that children do not count them as one."""


@dataclass
class ChildProcess:
    """A child, and the pipe through which it reports that it is healthy."""

    pid: int
    pipe: int
    started_at: float = field(default_factory=time.monotonic)
    reported_at: float = field(default_factory=time.monotonic)


class HealthFile:
    """A file that is written about once a second while all children are healthy."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, pids: list[int]) -> None:
        """Write the ids of the supervisor and its children, at most once a second.

        The file is replaced as a whole, so a reader never sees a partial file.
        """
        text = json.dumps({"pid": os.getpid(), "processes": pids})
        if self.path.exists():
            age = time.time() - self.path.stat().st_mtime
            if age < 1 and self.path.read_text() == text:
                return
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        temporary.write_text(text)
        temporary.replace(self.path)

    def delete(self) -> None:
        """Delete the file if it exists."""
        self.path.unlink(missing_ok=True)


class Supervisor:
    """Runs ``work(report_healthy)`` in ``count`` children until they have ended.

    A child that exits with status 0 is finished. A child that exits with another status is
    replaced. Each SIGTERM and SIGINT is forwarded to the children. After the first signal, no child
    is replaced.

    ``work`` calls ``report_healthy`` while it is healthy. ``health_file`` is written while each
    child has called it in the last ``report_seconds``. ``is_stale`` returns whether the code has
    changed. If it has, the supervisor ends the children. ``log`` shows a line of text to the
    operator.
    """

    def __init__(
        self,
        work: Callable[[Callable[[], None]], None],
        count: int,
        *,
        health_file: Path | None = None,
        report_seconds: float = 30.0,
        is_stale: Callable[[], bool] = lambda: False,
        log: Callable[[str], None],
    ) -> None:
        self.work = work
        self.count = count
        self.health_file = HealthFile(health_file) if health_file else None
        self.report_seconds = report_seconds
        self.is_stale = is_stale
        self.log = log
        self.children: dict[int, ChildProcess] = {}
        self.is_ending = False
        self._signals: list[int] = []
        self._finished = 0
        self._short_lives = 0
        self._replace_at = 0.0

    def run(self) -> bool:
        """Supervise until all children have ended. Return whether to restart with changed code."""
        for number in _SIGNALS:
            signal.signal(number, lambda number, _: self._signals.append(number))
        is_restarting = False
        while self.children or self._missing():
            while self._missing() and time.monotonic() >= self._replace_at:
                self._start_child()
            self._receive_reports()
            while self._signals:
                self._signal_children(self._signals.pop(0))
            self._reap()
            if self.health_file is not None and self._is_healthy():
                self.health_file.write(sorted(self.children))
            if not self.is_ending and self.is_stale():
                is_restarting = True
                self._signal_children(signal.SIGTERM)
                time.sleep(_SECOND_SIGNAL_SECONDS)
                self._signal_children(signal.SIGTERM)  # The second signal releases the runs.
        if self.health_file is not None:
            self.health_file.delete()
        return is_restarting

    def _missing(self) -> int:
        """Return how many children to start."""
        return 0 if self.is_ending else self.count - self._finished - len(self.children)

    def _start_child(self) -> None:
        read_end, write_end = os.pipe()
        os.set_blocking(write_end, False)
        # A signal must not reach the child before it has replaced the supervisor's handlers.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if not pid:
            self._run_child(write_end)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
        os.close(write_end)
        self.children[pid] = ChildProcess(pid, read_end)

    def _run_child(self, pipe: int) -> NoReturn:
        """Do the work and exit, without the exit handlers of the supervisor."""

        def report_healthy() -> None:
            with suppress(BlockingIOError):  # The pipe is full of unread reports.
                os.write(pipe, b".")

        status = 1
        try:
            os.setpgid(0, 0)  # Ctrl-C reaches only the supervisor, which forwards it.
            for sibling in self.children.values():
                os.close(sibling.pipe)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            self.work(report_healthy)
            status = 0
        except BaseException as error:  # noqa: BLE001 - the process exits here in any case
            self.log(f"Process {os.getpid()} failed: {error!r}")
        finally:
            os._exit(status)

    def _receive_reports(self) -> None:
        """Wait until a child reports or a signal arrives, at most 0.2 seconds."""
        pipes = {child.pipe: child for child in self.children.values()}
        readable, _, _ = select.select(list(pipes), [], [], 0.2)
        for pipe in readable:
            if os.read(pipe, 4096):
                pipes[pipe].reported_at = time.monotonic()
            else:  # The child is exiting: its end of the pipe is closed.
                time.sleep(0.02)

    def _signal_children(self, number: int) -> None:
        self.is_ending = True
        for pid in self.children:
            os.kill(pid, number)

    def _reap(self) -> None:
        """Remove the children that have exited, and schedule replacements for those that failed."""
        for child in list(self.children.values()):
            pid, wait_status = os.waitpid(child.pid, os.WNOHANG)
            if not pid:
                continue
            del self.children[pid]
            os.close(child.pipe)
            status = os.waitstatus_to_exitcode(wait_status)
            if status == 0:
                self._finished += 1
            elif not self.is_ending:
                is_short = time.monotonic() - child.started_at < _SHORT_LIFE_SECONDS
                self._short_lives = self._short_lives + 1 if is_short else 0
                pause = min(2.0**self._short_lives - 1, _LONGEST_PAUSE)
                self._replace_at = time.monotonic() + pause
                self.log(
                    f"Process {pid} exited with status {status}. Replacing it in {pause:g} seconds."
                )

    def _is_healthy(self) -> bool:
        """Whether every unfinished child exists and has reported recently."""
        reports = [child.reported_at for child in self.children.values()]
        if not reports or len(reports) < self.count - self._finished:
            return False
        return time.monotonic() - min(reports) < self.report_seconds
