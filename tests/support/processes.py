"""Processes of a host project for tests: workers, web servers, commands.

Everything started here ends with its ``with`` block, whatever happened to it meanwhile.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, Any, Self

import psutil
import redis
from django.db import connections
from django.test import override_settings

from agentic_django.concurrency import process_state
from tests.settings import ROOT, TASK_BACKENDS, database, rq_queues
from tests.support.forkserver import Forked, fork

__all__ = ["Process", "Project", "free_port", "wait_until"]


def wait_until(
    condition: Callable[[], Any], *, timeout: float = 20.0, what: str | Callable[[], str] = ""
) -> Any:
    """Return the condition's first true value; raise TimeoutError, saying what was awaited."""
    end = time.monotonic() + timeout
    while not (value := condition()):
        if time.monotonic() > end:
            said = what() if callable(what) else what
            raise TimeoutError(f"Not within {timeout:g} s: {said or condition}")
        time.sleep(0.02)
    return value


def free_port() -> int:
    """Return a loopback port that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Process:
    """A process whose output goes to a file; it and all its descendants can be killed."""

    arguments: list[str]
    env: Mapping[str, str]
    log: Path
    ready: Callable[[Process], bool] = lambda process: True
    popen: subprocess.Popen[bytes] | Forked | None = None
    url: str = ""

    @property
    def pid(self) -> int:
        """The process's id."""
        assert self.popen is not None, "The process is not started."
        return self.popen.pid

    @property
    def is_alive(self) -> bool:
        """Whether the process runs (its descendants may, even if not)."""
        return self.popen is not None and self.popen.poll() is None

    def output(self) -> str:
        """Return all that the process and its earlier starts have written."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def start(self, *, timeout: float = 60.0) -> Self:
        """Start, or start again, and wait until it is ready."""
        assert not self.is_alive, "The process is running already."
        with self.log.open("ab") as log:
            self.popen = self._open(log)
        wait_until(self._is_ready, timeout=timeout, what=self._complaint)
        return self

    def _open(self, log: IO[bytes]) -> subprocess.Popen[bytes] | Forked:
        if self.arguments[0] == sys.executable:
            return fork(self.arguments[1:], self.env, ROOT, log)
        return subprocess.Popen(
            self.arguments,
            env=self.env,
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    def _is_ready(self) -> bool:
        if not self.is_alive:
            raise RuntimeError(f"The process ended at its start. {self._complaint()}")
        return self.ready(self)

    def _complaint(self) -> str:
        return f"{' '.join(self.arguments)} wrote:\n{self.output()[-4000:]}"

    def family(self) -> list[psutil.Process]:
        """Return the process and its descendants, orphans included.

        They are known by the file they write to: a worker puts each job into a session of its
        own, which outlives it.
        """
        family = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if any(Path(file.path) == self.log.resolve() for file in process.open_files()):
                    family.append(process)
        return family

    def children(self) -> list[psutil.Process]:
        """Return the descendants alone: of an RQ worker, the job it is at."""
        return [process for process in self.family() if process.pid != self.pid]

    def signal(self, number: int) -> None:
        """Send a signal to the process alone."""
        os.kill(self.pid, number)

    def signal_all(self, number: int) -> None:
        """Send a signal to the process and all its descendants (SIGSTOP, SIGCONT)."""
        for process in self.family():
            with suppress(psutil.NoSuchProcess):
                process.send_signal(number)

    def kill_alone(self) -> None:
        """Kill the process alone and leave its descendants running."""
        assert self.popen is not None, "The process is not started."
        self.popen.kill()
        self.popen.wait()

    def kill(self) -> None:
        """Kill the process and all its descendants."""
        while family := [process for process in self.family() if not _is_dead(process)]:
            for process in family:
                with suppress(psutil.NoSuchProcess):
                    process.kill()
            if self.popen is not None:
                self.popen.wait()
            psutil.wait_procs(family, timeout=5)

    def stop(self, *, timeout: float = 20.0) -> int:
        """Ask the process to end (SIGTERM), wait for it, and return its exit status."""
        assert self.popen is not None, "The process is not started."
        self.popen.terminate()
        return self.popen.wait(timeout)

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.kill()
            raise

    def __exit__(self, *_: object) -> None:
        self.kill()


def _is_dead(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return True


@dataclass
class Project:
    """A host project on a database of its own, for processes and for the test itself.

    ``tasks`` is a key of ``TASK_BACKENDS`` in the tests' settings; ``extra`` are more variables
    of the environment. Logs and other files go to ``directory``.
    """

    database_url: str
    redis_port: int = 6379
    tasks: str = "immediate"
    settings: str = "tests.settings"
    directory: Path = field(default_factory=Path)
    extra: dict[str, str] = field(default_factory=dict)

    @property
    def env(self) -> dict[str, str]:
        """The whole environment of the project's processes."""
        return {
            **os.environ,
            "DJANGO_SETTINGS_MODULE": self.settings,
            "PYTHONPATH": str(ROOT),
            "PYTHONUNBUFFERED": "1",
            "AGENTIC_TEST_DATABASE_URL": self.database_url,
            "AGENTIC_TEST_REDIS_PORT": str(self.redis_port),
            "AGENTIC_TEST_TASKS": self.tasks,
            **self.extra,
        }

    def manage(self, *arguments: str, timeout: float = 120.0) -> str:
        """Run a management command to its end and return what it wrote; raises if it fails."""
        return self._run(["-m", "django", *arguments], timeout)

    def python(self, code: str, *, timeout: float = 120.0) -> str:
        """Run code in a fresh process, Django set up, and return what it wrote."""
        return self.script(f"import django\ndjango.setup()\n{code}", timeout=timeout)

    def script(self, code: str, *, timeout: float = 120.0) -> str:
        """Run code in a fresh process, which sets Django up by itself, and return what it wrote."""
        return self._run(["-c", code], timeout)

    def _run(self, arguments: list[str], timeout: float) -> str:
        with TemporaryFile("w+") as stdout, TemporaryFile("w+") as stderr:
            process = fork(arguments, self.env, ROOT, stdout, stderr)
            try:
                status = process.wait(timeout)
            finally:
                process.kill()
            stdout.seek(0)
            stderr.seek(0)
            if status:
                raise RuntimeError(f"Exit status {status}:\n{stdout.read()}\n{stderr.read()}")
            return stdout.read()

    def process(
        self,
        *arguments: str,
        ready: Callable[[Process], bool] = lambda process: True,
        extra: Mapping[str, str] | None = None,
    ) -> Process:
        """Return a process ``python …`` of the project, not started yet: use it in ``with``."""
        log = self.directory / f"process-{uuid.uuid4().hex[:8]}.log"
        return Process([sys.executable, *arguments], {**self.env, **(extra or {})}, log, ready)

    def rq_worker(self, *queues: str, **extra: str) -> Process:
        """Return a stock RQ worker; it is ready when Redis knows it."""
        name = f"worker-{uuid.uuid4().hex[:12]}"

        def is_registered(process: Process) -> bool:
            with redis.Redis(host="127.0.0.1", port=self.redis_port) as client:
                return bool(client.sismember("rq:workers", f"rq:worker:{name}"))

        command = ["-m", "django", "rqworker", *(queues or ["default"]), f"--name={name}"]
        command.append("--job-class=django_tasks_rq.Job")
        return self.process(*command, ready=is_registered, extra=extra)

    def worker(self, *options: str, **extra: str) -> Process:
        """Return a worker with many slots; it is ready when its processes are started."""

        def is_at_work(process: Process) -> bool:
            return "claims runs of" in process.output()

        command = ["-m", "django", "agentic_django_worker", *options]
        return self.process(*command, ready=is_at_work, extra=extra)

    def db_worker(self, **extra: str) -> Process:
        """Return a stock worker of the database backend."""
        command = ["-m", "django", "db_worker", "--interval=0.1", "--no-startup-delay"]
        return self.process(*command, extra=extra)

    def web_server(self, application: str = "tests.asgi:application", **extra: str) -> Process:
        """Return an ASGI server on a free loopback port, which is in its ``url``."""
        port = free_port()
        command = ["-m", "uvicorn", application, "--host=127.0.0.1", f"--port={port}"]

        def answers(process: Process) -> bool:
            with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
                return True
            return False

        server = self.process(*command, ready=answers, extra=extra)
        server.url = f"http://127.0.0.1:{port}"
        return server

    @contextmanager
    def in_process(self) -> Iterator[None]:
        """Let this thread, and those it starts, use the project's database and task backend."""
        previous = connections.settings["default"]
        connections["default"].close()
        del connections["default"]
        # Filled with the defaults that Django gives to every entry.
        fresh = connections.configure_settings({"default": database(self.database_url)})
        connections.settings["default"] = fresh["default"]
        tasks, queues = {"default": TASK_BACKENDS[self.tasks]}, rq_queues(self.redis_port)
        try:
            with override_settings(TASKS=tasks, RQ_QUEUES=queues):
                yield
        finally:
            process_state.process.stop()  # Its background threads use the project's database.
            connections["default"].close()
            del connections["default"]
            connections.settings["default"] = previous
