"""Synchronous work of a run is done on the thread that carries it."""

from __future__ import annotations

import threading
from contextlib import suppress
from typing import Any

import pytest
from django.contrib.auth.models import Group
from django.db import connection, transaction

from agentic_django import threads


async def _what_follows(failing: bool) -> set[int]:
    seen = set()
    for _ in range(200):
        with suppress(ZeroDivisionError):
            await threads.call(lambda: 1 / 0 if failing else None)
        seen.add(await threads.aside(threading.get_ident))
    return seen


@pytest.mark.django_db
@pytest.mark.parametrize("failing", [True, False])
def test_what_follows_on_work_stays_on_the_runs_thread(failing: bool) -> None:
    assert threads.run_here(lambda: _what_follows(failing)) == {threading.get_ident()}


@pytest.mark.django_db
def test_what_follows_on_a_failure_joins_the_callers_transaction() -> None:
    async def work() -> Any:
        await threads.call(Group.objects.create, name="before")
        return await threads.aside(Group.objects.count)

    with transaction.atomic():
        assert threads.run_here(work) == 1
        assert connection.in_atomic_block
    assert Group.objects.count() == 1


def test_a_thread_knows_whether_it_carries_a_run() -> None:
    async def work() -> bool:
        return await threads.call(threads.in_run)

    assert not threads.in_run()
    assert threads.run_here(work)
    assert not threads.in_run()
