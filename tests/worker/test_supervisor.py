"""A supervisor keeps its children at work, and passes on what it is told."""

from __future__ import annotations

import json
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from agentic_django.worker.slots import WorkerSlots
from tests.settings import ROOT
from tests.support.processes import Process, wait_until

SCRIPT = """
import os, signal, sys, time
from pathlib import Path
from agentic_django.worker.supervisor import Supervisor

def work(tell):
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(print("told", flush=True)))
    print("child", os.getpid(), flush=True)
    while len(told) < int(sys.argv[1]) and not Path(sys.argv[2]).exists():
        tell()
        time.sleep(0.05)
    print("ends", os.getpid(), len(told), flush=True)

stale = Path(sys.argv[3])
supervisor = Supervisor(work, 2, health_file=Path(sys.argv[4]), is_stale=stale.exists,
                        log=lambda text: print(text, flush=True))
print("anew" if supervisor.run() else "over", flush=True)
"""


@contextmanager
def supervised(directory: Path, signals: int = 1) -> Iterator[Process]:
    """Start a supervisor of two children that end after so many signals."""
    paths = [str(directory / name) for name in ("done", "stale", "health")]
    arguments = [sys.executable, "-c", SCRIPT, str(signals), *paths]
    env = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}

    def has_children(process: Process) -> bool:
        return process.output().count("child") >= 2

    with Process(arguments, env, directory / "log", has_children) as process:
        yield process


def ended(process: Process) -> str:
    assert process.popen is not None
    assert process.popen.wait(20) == 0
    return process.output().split()[-1]


def children(process: Process) -> list[int]:
    found = psutil.Process(process.pid).children()
    return sorted(child.pid for child in found if child.status() != psutil.STATUS_ZOMBIE)


def test_a_signal_is_passed_on_and_waited_for(tmp_path: Path) -> None:
    with supervised(tmp_path, signals=2) as process:
        wait_until(lambda: (tmp_path / "health").exists())
        process.signal(signal.SIGTERM)
        wait_until(lambda: process.output().count("told") == 2)
        assert len(children(process)) == 2
        process.signal(signal.SIGTERM)
        assert ended(process) == "over"
        assert process.output().count("ends") == 2
    assert not (tmp_path / "health").exists()


def test_a_child_that_dies_is_replaced_and_one_that_is_done_is_not(tmp_path: Path) -> None:
    with supervised(tmp_path) as process:
        first = children(process)
        psutil.Process(first[0]).kill()
        wait_until(lambda: process.output().count("child ") == 3)
        assert f"Process {first[0]} ended (-9); another follows" in process.output()
        (tmp_path / "done").touch()
        assert ended(process) == "over"
        assert process.output().count("child ") == 3


def test_stale_code_ends_the_children_to_begin_anew(tmp_path: Path) -> None:
    with supervised(tmp_path, signals=2) as process:
        (tmp_path / "stale").touch()
        assert ended(process) == "anew"


def test_the_health_file_grows_old_when_a_child_is_silent(tmp_path: Path) -> None:
    with supervised(tmp_path) as process:
        wait_until((tmp_path / "health").exists)
        told = json.loads((tmp_path / "health").read_text())
        assert told == {"pid": process.pid, "processes": children(process)}


@pytest.fixture
def free() -> Callable[[WorkerSlots], int]:
    return lambda slots: slots.count - slots.busy


def test_slots_are_taken_and_given_back(free: Callable[[WorkerSlots], int]) -> None:
    slots = WorkerSlots(3)
    assert slots.take(2) == 2
    assert slots.take(5) == 1
    assert slots.take(1, seconds=0.01) == 0
    assert not slots.wait_until_free(0.01)
    slots.give_back(3)
    assert slots.wait_until_free(0.01)
    assert free(slots) == 3
