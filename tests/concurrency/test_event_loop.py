"""Synchronous work of a run is done on the thread that carries it."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any
from unittest.mock import patch

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from django.contrib.auth.models import Group
from django.db import connection, transaction

from agentic_django.concurrency import event_loop, executors
from tests.support.processes import Project, wait_until


async def _what_follows(failing: bool) -> set[int]:
    seen = set()
    for _ in range(200):
        with suppress(ZeroDivisionError):
            await event_loop.run_sync(lambda: 1 / 0 if failing else None)
        seen.add(await event_loop.run_sync_unqueued(threading.get_ident))
    return seen


@pytest.mark.django_db
@pytest.mark.parametrize("failing", [True, False])
def test_what_follows_on_work_stays_on_the_runs_thread(failing: bool) -> None:
    assert event_loop.run_on_loop(lambda: _what_follows(failing)) == {threading.get_ident()}


@pytest.mark.django_db
def test_what_follows_on_a_failure_joins_the_callers_transaction() -> None:
    async def work() -> Any:
        await event_loop.run_sync(Group.objects.create, name="before")
        return await event_loop.run_sync_unqueued(Group.objects.count)

    with transaction.atomic():
        assert event_loop.run_on_loop(work) == 1
        assert connection.in_atomic_block
    assert Group.objects.count() == 1


def test_a_thread_knows_whether_it_carries_a_run() -> None:
    async def work() -> bool:
        return await event_loop.run_sync(event_loop.is_executing_run)

    assert not event_loop.is_executing_run()
    assert event_loop.run_on_loop(work)
    assert not event_loop.is_executing_run()


# What a thread or the loop may meet


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["sync", "async"])
def test_the_loop_outlives_what_ends_a_program(where: str, kind: type[BaseException]) -> None:
    def leave() -> None:
        raise kind

    async def work() -> None:
        if where == "sync":
            await asyncio.to_thread(leave)
        await asyncio.create_task(asyncio.sleep(0))
        leave()

    with pytest.raises(kind):
        event_loop.run_on_loop(work)
    assert event_loop.run_on_loop(answer) == 42


async def answer() -> int:
    return 42


def test_work_is_cancelled_if_its_thread_is_interrupted() -> None:
    ended: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(20)
        except asyncio.CancelledError:
            ended.append("cancelled")
            raise

    with (
        patch.object(executors.CallerThreadExecutor, "serve", side_effect=KeyboardInterrupt),
        pytest.raises(KeyboardInterrupt),
    ):
        event_loop.run_on_loop(work)
    wait_until(lambda: ended == ["cancelled"])
    assert not event_loop.is_executing_run()


def test_all_runs_of_a_process_share_one_loop() -> None:
    async def work() -> int:
        return id(asyncio.get_running_loop())

    with ThreadPoolExecutor(10) as pool:
        loops = set(pool.map(lambda _: event_loop.run_on_loop(work), range(50)))
    assert len(loops) == 1


def test_a_run_within_a_run_is_carried_by_the_same_thread() -> None:
    async def inner() -> int:
        return await event_loop.run_sync(threading.get_ident)

    async def outer() -> tuple[int, int]:
        return await event_loop.run_sync(threading.get_ident), await event_loop.run_sync(
            lambda: event_loop.run_on_loop(inner)
        )

    assert event_loop.run_on_loop(outer) == (threading.get_ident(), threading.get_ident())


def test_work_is_done_beside_a_thread_that_is_occupied() -> None:
    release = threading.Event()

    async def work() -> tuple[int, int]:
        blocking = asyncio.create_task(asyncio.to_thread(release.wait, 20))
        queued = asyncio.create_task(asyncio.to_thread(threading.get_ident))
        await asyncio.sleep(0.05)
        beside = await event_loop.run_sync_unqueued(threading.get_ident)
        release.set()
        await blocking
        return beside, await queued

    beside, queued = event_loop.run_on_loop(work)
    assert queued == threading.get_ident()
    assert beside != queued


def test_a_cancelled_call_that_has_not_begun_is_not_made() -> None:
    release = threading.Event()
    made: list[int] = []

    async def work() -> None:
        blocking = asyncio.create_task(asyncio.to_thread(release.wait, 20))
        queued = asyncio.create_task(asyncio.to_thread(made.append, 1))
        await asyncio.sleep(0.05)
        queued.cancel()
        await asyncio.sleep(0)
        release.set()
        await blocking

    event_loop.run_on_loop(work)
    assert made == []


FORK = """
import os
from agentic_django.concurrency import event_loop

async def answer():
    return await event_loop.run_sync(os.getpid)

assert event_loop.run_on_loop(answer) == os.getpid()
child = os.fork()
if not child:
    os._exit(0 if event_loop.run_on_loop(answer) == os.getpid() else 1)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


def test_a_forked_process_has_a_loop_of_its_own(sqlite_project: Project) -> None:
    assert sqlite_project.python(FORK).strip() == "0"


def test_what_a_host_does_on_the_thread_after_a_run_has_a_loop_of_its_own() -> None:
    async def loop_of() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def work() -> asyncio.AbstractEventLoop:
        await sync_to_async(threading.get_ident)()
        return asyncio.get_running_loop()

    ours = event_loop.run_on_loop(work)
    assert async_to_sync(loop_of)() is not ours
