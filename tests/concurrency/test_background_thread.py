"""A background thread runs while it has work."""

from __future__ import annotations

import threading

import pytest

from agentic_django.concurrency.background_thread import BackgroundThread, RepeatingThread
from tests.support.processes import wait_until


class Collector(BackgroundThread):
    """Moves items to a list; fails on "bad"; waits for ``may_end`` before it ends."""

    name = "collector"

    def __init__(self) -> None:
        super().__init__()
        self.items: list[str] = []
        self.done: list[str] = []
        self.threads: set[threading.Thread] = set()
        self.is_ending, self.may_end = threading.Event(), threading.Event()
        self.may_end.set()

    def add(self, item: str) -> None:
        with self._condition:
            self.items.append(item)
            self.start()

    def _run(self) -> None:
        self.threads.add(threading.current_thread())
        while self.items:
            item = self.items.pop(0)
            if item == "bad":
                raise ValueError(item)
            self.done.append(item)
        self.is_ending.set()
        self.may_end.wait(20)


def test_the_thread_starts_with_work_and_ends_after_it() -> None:
    collector = Collector()
    assert not collector.is_running
    for count, item in enumerate("ab", 1):
        collector.add(item)
        wait_until(lambda: not collector.is_running)
        assert len(collector.threads) == count
    assert collector.done == ["a", "b"]


def test_work_that_arrives_while_the_thread_ends_is_done() -> None:
    collector = Collector()
    collector.may_end.clear()
    collector.add("first")
    assert collector.is_ending.wait(20)
    collector.add("second")
    collector.may_end.set()
    wait_until(lambda: not collector.is_running)
    assert collector.done == ["first", "second"]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_work_after_an_error_starts_another_thread() -> None:
    collector = Collector()
    collector.add("bad")
    wait_until(lambda: not collector.is_running)
    collector.add("good")
    wait_until(lambda: collector.done == ["good"])
    assert len(collector.threads) == 2


def test_a_stopped_thread_finishes_its_present_work_and_starts_no_more() -> None:
    collector = Collector()
    collector.may_end.clear()
    collector.add("first")
    assert collector.is_ending.wait(20)
    stopping = threading.Thread(target=collector.stop)
    stopping.start()
    stopping.join(0.05)
    assert stopping.is_alive()
    collector.may_end.set()
    stopping.join(20)
    assert not collector.is_running
    collector.add("second")
    assert not collector.is_running
    assert collector.done == ["first"]


class Waiting(BackgroundThread):
    """A thread that waits until it is stopped."""

    def _run(self) -> None:
        assert not self._pause(20)


def test_stop_interrupts_a_pause() -> None:
    thread = Waiting()
    thread.start()
    thread.stop(5)
    assert not thread.is_running


def test_stop_waits_no_longer_than_its_timeout() -> None:
    collector = Collector()
    collector.may_end.clear()
    collector.add("first")
    assert collector.is_ending.wait(20)
    collector.stop(0.01)
    assert collector.is_running
    collector.may_end.set()
    wait_until(lambda: not collector.is_running)


def test_a_repeating_thread_calls_its_function_until_it_is_stopped() -> None:
    calls: list[str] = []
    thread = RepeatingThread("repeat", 0.01, lambda: calls.append(threading.current_thread().name))
    thread.start()
    wait_until(lambda: calls[2:] != [])
    thread.stop(5)
    count = len(calls)
    assert not thread.is_running
    assert set(calls) == {"repeat"}
    threading.Event().wait(0.05)
    assert len(calls) == count
