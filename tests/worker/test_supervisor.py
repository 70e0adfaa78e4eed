"""A supervisor replaces children that die, and forwards signals to them."""

from __future__ import annotations

import json
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil

from tests.settings import ROOT
from tests.support.processes import Process, wait_until

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from agentic_django.worker.supervisor import Supervisor

def work(report_healthy):
    signals = []
    signal.signal(signal.SIGTERM, lambda *_: signals.append(print("signalled", flush=True)))
    print("started", os.getpid(), flush=True)
    while len(signals) < int(sys.argv[1]) and not finished.exists():
        if not silent.exists():
            report_healthy()
        time.sleep(0.05)
    print("finished", os.getpid(), len(signals), flush=True)

finished, stale, silent, health = map(Path, sys.argv[2:])
supervisor = Supervisor(work, 2, health_file=health, report_seconds=0.5, is_stale=stale.exists,
                        log=lambda text: print(text, flush=True))
print("restart" if supervisor.run() else "exit", flush=True)
"""


@contextmanager
def supervised(directory: Path, signals: int = 1) -> Iterator[Process]:
    """Start a supervisor of two children, which finish after this number of signals."""
    paths = [str(directory / name) for name in ("finished", "stale", "silent", "health")]
    arguments = [sys.executable, "-c", SCRIPT, str(signals), *paths]
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}

    def has_children(process: Process) -> bool:
        return process.output().count("started") >= 2

    with Process(arguments, env, directory / "log", has_children) as process:
        yield process


def result(process: Process) -> str:
    """Wait until the supervisor exits, and return the last word that it printed."""
    assert process.popen is not None
    assert process.popen.wait(20) == 0
    return process.output().split()[-1]


def children(process: Process) -> list[int]:
    found = psutil.Process(process.pid).children()
    return sorted(child.pid for child in found if child.status() != psutil.STATUS_ZOMBIE)


def test_each_signal_is_forwarded_and_the_supervisor_waits_for_its_children(
    tmp_path: Path,
) -> None:
    with supervised(tmp_path, signals=2) as process:
        wait_until(lambda: (tmp_path / "health").exists())
        process.signal(signal.SIGTERM)
        wait_until(lambda: process.output().count("signalled") == 2)
        assert len(children(process)) == 2
        process.signal(signal.SIGTERM)
        assert result(process) == "exit"
        assert process.output().count("finished") == 2
    assert not (tmp_path / "health").exists()


def test_a_child_that_dies_is_replaced_and_one_that_finishes_is_not(tmp_path: Path) -> None:
    with supervised(tmp_path) as process:
        first = children(process)
        psutil.Process(first[0]).kill()
        wait_until(lambda: process.output().count("started") == 3)
        assert f"Process {first[0]} exited with status -9. Replacing it" in process.output()
        (tmp_path / "finished").touch()
        assert result(process) == "exit"
        assert process.output().count("started") == 3


def test_children_receive_two_signals_before_a_restart_with_changed_code(tmp_path: Path) -> None:
    with supervised(tmp_path, signals=2) as process:
        (tmp_path / "stale").touch()
        assert result(process) == "restart"
        assert process.output().count("signalled") == 4


def test_the_health_file_names_the_supervisor_and_its_children(tmp_path: Path) -> None:
    with supervised(tmp_path) as process:
        wait_until((tmp_path / "health").exists)
        health = json.loads((tmp_path / "health").read_text())
        assert health == {"pid": process.pid, "processes": children(process)}


def test_the_health_file_is_not_written_while_children_do_not_report(tmp_path: Path) -> None:
    health = tmp_path / "health"
    with supervised(tmp_path):
        wait_until(health.exists)
        (tmp_path / "silent").touch()

        def age() -> float:
            return time.time() - health.stat().st_mtime

        wait_until(lambda: age() > 2)
        (tmp_path / "silent").unlink()
        wait_until(lambda: age() < 1)
