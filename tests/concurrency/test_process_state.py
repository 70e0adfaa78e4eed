"""A process has one object of each kind; a fork drops them all."""

from __future__ import annotations

import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

from agentic_django.concurrency.background_thread import BackgroundThread
from agentic_django.concurrency.process_state import Process
from tests.support.processes import Project


class Counter:
    """An object that a process has once."""


def test_every_caller_gets_the_same_object() -> None:
    made: list[int] = []
    process = Process()

    def factory() -> Counter:
        made.append(1)
        return Counter()

    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: process.get(factory), range(50)))
    assert len(found) == len(made) == 1


def test_an_object_may_need_another_one_to_be_made() -> None:
    process = Process()
    assert process.get(lambda: process.get(Counter)) is process.get(Counter)


def test_reset_drops_all_objects() -> None:
    process = Process()
    before = process.get(Counter)
    process.reset()
    assert process.get(Counter) is not before


class Waiting(BackgroundThread):
    """A thread that waits until it is stopped."""

    def _run(self) -> None:
        while self._pause(20):
            pass


def test_stop_ends_the_threads_and_keeps_other_objects() -> None:
    process = Process()
    thread, counter = process.get(Waiting), process.get(Counter)
    thread.start()
    process.stop()
    assert not thread.is_running
    assert process.get(Waiting) is not thread
    assert process.get(Counter) is counter


def test_stop_ends_a_thread_that_another_one_starts_at_its_end() -> None:
    process = Process()

    class Last(Waiting):
        def _run(self) -> None:
            super()._run()
            process.get(Waiting).start()

    process.get(Last).start()
    process.stop()
    assert "agentic-background" not in {each.name for each in threading.enumerate()}


FORK = """
import os
from agentic_django.concurrency.process_state import process

parent = process.get(object)
process._lock.acquire()  # Another thread of the parent may hold it at the moment of the fork.
child = os.fork()
if not child:
    os._exit(0 if process.get(object) is not parent else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), process.get(object) is parent)
"""


def test_a_forked_child_has_objects_of_its_own(sqlite_project: Project) -> None:
    assert sqlite_project.python(FORK).strip() == "0 True"


NO_FORK = """
import os
import django.db  # The standard library uses the function itself.
del os.register_at_fork
from agentic_django.concurrency.process_state import process
print(type(process.get(object)).__name__)
"""


def test_it_works_on_a_system_without_fork() -> None:
    done = subprocess.run([sys.executable, "-c", NO_FORK], capture_output=True, text=True)
    assert done.stdout.strip() == "object", done.stderr
