"""Processes that are started again when they die, and stopped together."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

GRACE_SECONDS = 10.0


class Crew:
    """The processes of ``with crew(…) as processes``."""

    def __init__(self, commands: Mapping[str, Sequence[str]]) -> None:
        self.commands = commands
        self.processes = {name: self._start(name) for name in commands}

    def watch(self) -> None:
        """Look after the processes, until an exception (Ctrl+C) ends it."""
        while True:
            time.sleep(0.5)
            for name, process in self.processes.items():
                if process.poll() is not None:
                    print(f"{name} (pid {process.pid}) died; starting it again.", flush=True)
                    self.processes[name] = self._start(name)

    def stop(self) -> None:
        """Terminate all processes, and kill those that do not end in time."""
        for process in self.processes.values():
            process.terminate()
        end = time.monotonic() + GRACE_SECONDS
        for process in self.processes.values():
            _outlast(process, end - time.monotonic())

    def _start(self, name: str) -> subprocess.Popen[bytes]:
        # A session of its own: Ctrl+C in the terminal reaches the demo alone, which then stops
        # its processes in order.
        process = subprocess.Popen(self.commands[name], start_new_session=True)
        print(f"{name} has pid {process.pid}", flush=True)
        return process


@contextmanager
def crew(commands: Mapping[str, Sequence[str]]) -> Iterator[Crew]:
    """Start named commands; stop them at the end of the block."""
    processes = Crew(commands)
    try:
        yield processes
    finally:
        processes.stop()


def _outlast(process: subprocess.Popen[bytes], seconds: float) -> None:
    try:
        process.wait(max(seconds, 0.0))
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
