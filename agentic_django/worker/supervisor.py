"""Keeps a number of child processes at work: replaces the dead, and passes on what it is told.

It knows nothing of what they do. It has one thread, so it may fork.
"""

from __future__ import annotations

import json
import os
import select
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

__all__ = ["ChildProcess", "Supervisor"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

_SILENT_SECONDS = 30.0
"""A child that has not been heard of for so long is not well."""

_LONGEST_PAUSE = 30.0
"""Between the death of a child that does not live long and its successor."""


@dataclass
class ChildProcess:
    """A process, and the pipe on which it is heard."""

    pid: int
    heard_on: int
    began: float = field(default_factory=time.monotonic)
    heard: float = field(default_factory=time.monotonic)


class Supervisor:
    """Runs ``work(tell)`` in so many children until it is told to end, or they all have ended.

    ``tell()`` is how a child says that it is well. A child that ends with status 0 has done its
    work; any other is replaced. SIGTERM and SIGINT are passed on, once each time.
    """

    def __init__(
        self,
        work: Callable[[Callable[[], None]], None],
        count: int,
        *,
        health_file: Path | None = None,
        is_stale: Callable[[], bool] = lambda: False,
        log: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.work = work
        self.count = count
        self.health_file = health_file
        self.is_stale = is_stale
        self.log = log
        self.children: dict[int, ChildProcess] = {}
        self.is_ending = False
        self._deaths = 0
        self._signals: list[int] = []
        self._restart_at = 0.0
        self._done = 0

    def run(self) -> bool:
        """Keep the children at work; return whether that is to begin anew, with fresh code."""
        for number in _SIGNALS:
            signal.signal(number, lambda number, _: self._signals.append(number))
        is_stale = False
        while self._is_needed():
            self._fill()
            self._listen()
            self._pass_on()
            self._reap()
            self._show_health()
            if not self.is_ending and self.is_stale():
                is_stale = True
                self._end_soon()
        if self.health_file is not None:
            self.health_file.unlink(missing_ok=True)
        return is_stale

    def _is_needed(self) -> bool:
        return bool(self.children) or not (self.is_ending or self._done >= self.count)

    def _fill(self) -> None:
        wanted = 0 if self.is_ending else self.count - self._done
        while len(self.children) < wanted and time.monotonic() >= self._restart_at:
            child = self._fork()
            self.children[child.pid] = child

    def _fork(self) -> ChildProcess:
        heard_on, telling = os.pipe()
        os.set_blocking(telling, False)
        # A signal that is passed on to a child must not meet the handler it has from here.
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        pid = os.fork()
        if pid:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            os.close(telling)
            return ChildProcess(pid, heard_on)
        self._be_child(telling)
        raise AssertionError("A child does not return.")

    def _be_child(self, telling: int) -> None:
        """Work, and leave without what the parent would do at its end."""
        status = 1
        try:
            os.setpgid(0, 0)  # Ctrl-C is the parent's to pass on.
            for child in self.children.values():
                os.close(child.heard_on)
            for number in _SIGNALS:
                signal.signal(number, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
            self.work(lambda: _tell(telling))
            status = 0
        except BaseException as error:  # noqa: BLE001 - told, and shown by the status
            self.log(f"Process {os.getpid()} failed: {error!r}")
        finally:
            os._exit(status)

    def _listen(self) -> None:
        """Wait a moment for words of children, or a signal."""
        pipes = {child.heard_on: child for child in self.children.values()}
        ready, _, _ = select.select(list(pipes), [], [], 0.2)
        for pipe in ready:
            if os.read(pipe, 4096):
                pipes[pipe].heard = time.monotonic()
            else:  # It is dying.
                time.sleep(0.02)

    def _pass_on(self) -> None:
        while self._signals:
            self.is_ending = True
            self._signal(self._signals.pop(0))

    def _signal(self, number: int) -> None:
        for pid in self.children:
            os.kill(pid, number)

    def _end_soon(self) -> None:
        """Let the children hand back what they do: a first signal, and a second."""
        self.is_ending = True
        self._signal(signal.SIGTERM)
        time.sleep(1)
        self._signal(signal.SIGTERM)

    def _reap(self) -> None:
        for child in list(self.children.values()):
            pid, status = os.waitpid(child.pid, os.WNOHANG)
            if pid:
                self._bury(child, os.waitstatus_to_exitcode(status))

    def _bury(self, child: ChildProcess, status: int) -> None:
        del self.children[child.pid]
        os.close(child.heard_on)
        if status == 0:
            self._done += 1
        elif not self.is_ending:
            lived = time.monotonic() - child.began
            self._deaths = self._deaths + 1 if lived < 10 else 0
            pause = min(2.0**self._deaths - 1, _LONGEST_PAUSE)
            self._restart_at = time.monotonic() + pause
            self.log(f"Process {child.pid} ended ({status}); another follows in {pause:g} s.")

    def _show_health(self) -> None:
        """Touch the file while every child is there and well; else let it grow old."""
        if self.health_file is None or len(self.children) < self.count - self._done:
            return
        heard = min((child.heard for child in self.children.values()), default=0.0)
        if time.monotonic() - heard < _SILENT_SECONDS:
            _write(self.health_file, {"pid": os.getpid(), "processes": sorted(self.children)})


def _tell(pipe: int) -> None:
    try:
        os.write(pipe, b".")
    except BlockingIOError:  # It was told often enough.
        return


def _write(path: Path, value: Any) -> None:
    """Replace a file, so that nobody reads half of it; at most once a second."""
    text = json.dumps(value)
    if path.exists() and time.time() - path.stat().st_mtime < 1 and path.read_text() == text:
        return
    fresh = path.with_name(f".{path.name}.{os.getpid()}")
    fresh.write_text(text)
    fresh.replace(path)
