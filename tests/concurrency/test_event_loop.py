"""Synchronous calls of a run execute on the thread that waits for the run."""

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


async def _threads_after_a_call(failing: bool) -> set[int]:
    seen = set()
    for _ in range(200):
        with suppress(ZeroDivisionError):
            await event_loop.run_sync(lambda: 1 / 0 if failing else None)
        seen.add(await event_loop.run_sync_unqueued(threading.get_ident))
    return seen


@pytest.mark.django_db
@pytest.mark.parametrize("failing", [True, False])
def test_a_call_after_another_one_executes_on_the_runs_thread(failing: bool) -> None:
    assert event_loop.run_on_loop(lambda: _threads_after_a_call(failing)) == {threading.get_ident()}


@pytest.mark.django_db
def test_calls_join_the_transaction_of_the_caller() -> None:
    async def work() -> Any:
        await event_loop.run_sync(Group.objects.create, name="before")
        return await event_loop.run_sync_unqueued(Group.objects.count)

    with transaction.atomic():
        assert event_loop.run_on_loop(work) == 1
        assert connection.in_atomic_block
    assert Group.objects.count() == 1


def test_it_is_known_whether_a_thread_executes_a_run() -> None:
    async def work() -> bool:
        return await event_loop.run_sync(event_loop.is_executing_run)

    assert not event_loop.is_executing_run()
    assert event_loop.run_on_loop(work)
    assert not event_loop.is_executing_run()


# Interruptions, nested runs, busy threads


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt])
@pytest.mark.parametrize("where", ["sync", "async"])
def test_the_loop_continues_after_an_exception_that_ends_programs(
    where: str, kind: type[BaseException]
) -> None:
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


def test_a_coroutine_is_cancelled_if_its_caller_is_interrupted() -> None:
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


def test_a_nested_run_executes_on_the_same_thread() -> None:
    async def inner() -> int:
        return await event_loop.run_sync(threading.get_ident)

    async def outer() -> tuple[int, int]:
        return await event_loop.run_sync(threading.get_ident), await event_loop.run_sync(
            lambda: event_loop.run_on_loop(inner)
        )

    assert event_loop.run_on_loop(outer) == (threading.get_ident(), threading.get_ident())


def test_an_unqueued_call_does_not_wait_for_a_tool_on_the_runs_thread() -> None:
    release = threading.Event()

    async def work() -> tuple[int, int]:
        blocking = asyncio.create_task(asyncio.to_thread(release.wait, 20))
        queued = asyncio.create_task(asyncio.to_thread(threading.get_ident))
        await asyncio.sleep(0.05)
        spare = await event_loop.run_sync_unqueued(threading.get_ident)
        release.set()
        await blocking
        return spare, await queued

    spare, queued = event_loop.run_on_loop(work)
    assert queued == threading.get_ident()
    assert spare != queued


def test_a_queued_call_that_is_cancelled_is_not_executed() -> None:
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


def test_a_forked_child_has_its_own_loop(sqlite_project: Project) -> None:
    assert sqlite_project.python(FORK).strip() == "0"


def test_async_to_sync_of_the_host_after_a_run_uses_its_own_loop() -> None:
    async def loop_of() -> asyncio.AbstractEventLoop:
        return asyncio.get_running_loop()

    async def work() -> asyncio.AbstractEventLoop:
        await sync_to_async(threading.get_ident)()
        return asyncio.get_running_loop()

    ours = event_loop.run_on_loop(work)
    assert async_to_sync(loop_of)() is not ours
