"""A fork server: processes begin in a tenth of the time, for what they import is there already.

``python -m tests.support.forkserver`` imports what every process of a project does, then forks
what it is asked for over a socket: a process of its own, in a session of its own, that has its
arguments, environment, directory and outputs, and has not imported a line of the project yet.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import json
import os
import runpy
import select
import signal
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any

__all__ = ["Forked", "fork"]

ROOT = Path(__file__).parents[2]

IMPORTED = (
    "agents.testing",
    "django.contrib.admin",
    "django.core.management",
    "django.test",
    "httpx",
    "jsonschema",
    "markdown_it",
    "psycopg",
    "redis",
    "rq",
    "uvicorn.main",
)
_NUMBER = struct.Struct("i")
_LONGEST_REQUEST = 1 << 20


# In a process of the tests


class Forked:
    """A process of the fork server, with the interface of ``subprocess.Popen`` as far as used."""

    def __init__(self, told: int) -> None:
        self._told = told
        self.returncode: int | None = None
        self.pid = self._read()

    def _read(self) -> int:
        return int(_NUMBER.unpack(os.read(self._told, _NUMBER.size))[0])

    def poll(self) -> int | None:
        """Return the exit status if the process has ended."""
        try:
            return self.wait(0)
        except subprocess.TimeoutExpired:
            return None

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status of the process once it ends; raises TimeoutExpired."""
        if self.returncode is None:
            if not select.select([self._told], [], [], timeout)[0]:
                raise subprocess.TimeoutExpired(str(self.pid), timeout or 0)
            self.returncode = self._read()
            os.close(self._told)
        return self.returncode

    def kill(self) -> None:
        """Kill the process, unless it has ended."""
        self._signal(signal.SIGKILL)

    def terminate(self) -> None:
        """Ask the process to end, unless it has."""
        self._signal(signal.SIGTERM)

    def _signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


def fork(
    arguments: Sequence[str],
    env: Mapping[str, str],
    cwd: Path,
    stdout: IO[Any],
    stderr: IO[Any] | None = None,
) -> Forked:
    """Start ``python`` with arguments: a module (``-m``), code (``-c``) or a file first."""
    told, telling = os.pipe()
    request = {"arguments": list(arguments), "env": dict(env), "cwd": str(cwd)}
    outputs = [stdout.fileno(), (stderr or stdout).fileno()]
    with _lock:
        socket.send_fds(_server(), [json.dumps(request).encode()], [*outputs, telling])
    os.close(telling)
    return Forked(told)


_lock = threading.Lock()


@cache
def _server() -> socket.socket:
    """Start the fork server; it ends with this process."""
    ours, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    command = [sys.executable, "-m", "tests.support.forkserver", str(its.fileno())]
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command,
        env=env,
        cwd=ROOT,
        pass_fds=[its.fileno()],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    its.close()
    atexit.register(lambda: (ours.close(), process.wait()))
    return ours


# In the fork server


def serve(asking: socket.socket) -> dict[str, Any] | None:
    """Fork for each request; return the request in the forked process, None in the server."""
    while True:
        data, descriptors, _, _ = socket.recv_fds(asking, _LONGEST_REQUEST, 3)
        if not data:
            return None
        if not os.fork():
            asking.close()
            if _is_forked(*descriptors):
                return dict(json.loads(data))
            os._exit(0)
        for descriptor in descriptors:
            os.close(descriptor)


def _is_forked(stdout: int, stderr: int, telling: int) -> bool:
    """Fork once more; in the parent tell the process's id, and its exit status as it ends."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    pid = os.fork()
    if not pid:
        os.setsid()
        os.dup2(stdout, 1)
        os.dup2(stderr, 2)
    for descriptor in (stdout, stderr):
        os.close(descriptor)
    if pid:
        os.write(telling, _NUMBER.pack(pid))
        _, status = os.waitpid(pid, 0)
        os.write(telling, _NUMBER.pack(os.waitstatus_to_exitcode(status)))
    os.close(telling)
    return not pid


def become(arguments: list[str], env: dict[str, str], cwd: str) -> None:
    """Do what ``python`` does with these arguments."""
    os.environ.clear()
    os.environ.update(env)
    os.chdir(cwd)
    sys.path[:0] = [cwd, *env.get("PYTHONPATH", "").split(os.pathsep)]
    sys.orig_argv = [sys.executable, *arguments]
    match arguments:
        case ["-m", module, *rest]:
            sys.argv = [module, *rest]
            runpy.run_module(module, run_name="__main__", alter_sys=True)
        case ["-c", code, *rest]:
            sys.argv = ["-c", *rest]
            exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        case [path, *_]:
            sys.argv = arguments
            runpy.run_path(path, run_name="__main__")


def main() -> None:
    """Import, and fork what is asked for on the socket whose number is the argument."""
    asking = socket.socket(fileno=int(sys.argv[1]))
    for name in IMPORTED:
        importlib.import_module(name)
    gc.freeze()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # Those that forked are not waited for.
    request = serve(asking)
    if request is not None:
        become(**request)


if __name__ == "__main__":
    main()
