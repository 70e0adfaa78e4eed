"""The slots of a worker process limit how many runs it executes at once."""

from __future__ import annotations

from agentic_django.worker.slots import WorkerSlots


def test_no_more_slots_are_acquired_than_are_free() -> None:
    slots = WorkerSlots(3)
    assert slots.acquire(2, timeout=0.01) == 2
    assert slots.acquire(5, timeout=0.01) == 1
    assert slots.acquire(1, timeout=0.01) == 0
    assert slots.busy == 3


def test_released_slots_can_be_acquired_again() -> None:
    slots = WorkerSlots(2)
    slots.acquire(2, timeout=0.01)
    slots.release()
    assert slots.acquire(2, timeout=0.01) == 1


def test_a_worker_is_idle_when_all_its_slots_are_released() -> None:
    slots = WorkerSlots(2)
    slots.acquire(2, timeout=0.01)
    slots.release()
    assert not slots.wait_until_idle(0.01)
    slots.release()
    assert slots.wait_until_idle(0.01)
