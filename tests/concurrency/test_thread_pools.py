"""Runs share thread pools, as in a worker with many slots."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from agents import function_tool
from django.contrib.auth.models import Group, User
from django.db import OperationalError, connection

from agentic_django.concurrency import event_loop
from agentic_django.concurrency.executors import ThreadPools
from agentic_django.worker import executor
from tests.support.agents import call_tool
from tests.support.attempts import sharing
from tests.support.rows import make_run

pytestmark = pytest.mark.django_db(transaction=True)

RECORDS, HOST_CODE = 2, 2


@pytest.fixture
def pools(no_queue: None) -> Iterator[ThreadPools]:
    """Let this process's runs share threads for one test."""
    with sharing(records=RECORDS, host_code=HOST_CODE) as pools:
        yield pools


def shared(work: Any) -> Any:
    return event_loop.start_on_loop(work).result(30)


def test_a_tool_executes_in_the_pool_for_host_code(
    pools: ThreadPools, user: User, scripted: Any
) -> None:
    seen = []

    @function_tool
    def look() -> str:
        seen.append(threading.current_thread().name)
        return Group.objects.create(name="made by a tool").name

    scripted("default", call_tool("look"), "Done.", tools=[look])
    run = make_run(user, "pending", agent_key="default")
    executor.execute(str(run.pk))
    run.refresh_from_db()
    assert (run.status, run.final_output) == ("completed", "Done.")
    assert seen[0].startswith("agentic-host-code")


def test_slow_host_code_does_not_delay_records(pools: ThreadPools) -> None:
    is_recorded = threading.Event()

    async def work() -> list[Any]:
        blocking = [event_loop.run_host_code(is_recorded.wait, 20) for _ in range(HOST_CODE)]
        waiting = asyncio.gather(*blocking)
        await event_loop.run_sync(Group.objects.count)
        is_recorded.set()
        return await waiting

    assert shared(work) == [True] * HOST_CODE


def test_host_code_of_one_run_executes_one_call_at_a_time_in_order(pools: ThreadPools) -> None:
    order: list[str] = []

    def note(name: str) -> None:
        order.extend((f"{name} begins", f"{name} ends"))

    async def work() -> None:
        await asyncio.gather(*(event_loop.run_host_code(note, name) for name in "abc"))

    shared(work)
    assert order == [f"{name} {verb}" for name in "abc" for verb in ("begins", "ends")]


def test_host_code_of_two_runs_executes_at_the_same_time(pools: ThreadPools) -> None:
    both = threading.Barrier(2)

    async def work() -> int:
        return await event_loop.run_host_code(both.wait, 20)

    futures = [event_loop.start_on_loop(work) for _ in range(2)]
    assert sorted(future.result(30) for future in futures) == [0, 1]


def test_an_exception_is_raised_where_the_result_is_awaited(pools: ThreadPools) -> None:
    async def work() -> None:
        await event_loop.run_host_code(lambda: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        shared(work)
    with pytest.raises(ZeroDivisionError):
        event_loop.run_in_records_pool(lambda: 1 / 0)


def test_a_connection_that_broke_is_replaced(pools: ThreadPools) -> None:
    def break_it() -> None:
        connection.ensure_connection()
        connection.connection.close()
        connection.errors_occurred = True
        raise OperationalError("The server has gone away.")

    for _ in range(RECORDS * 2):
        with pytest.raises(OperationalError):
            event_loop.run_in_records_pool(break_it)
    assert [event_loop.run_in_records_pool(Group.objects.count) for _ in range(RECORDS * 2)] == [
        0
    ] * RECORDS * 2


def test_a_call_sees_the_context_variables_of_its_run(pools: ThreadPools) -> None:
    from contextvars import ContextVar

    said: ContextVar[str] = ContextVar("said")

    async def work() -> tuple[str, str]:
        said.set("hello")
        return await event_loop.run_sync(said.get), await event_loop.run_host_code(said.get)

    assert shared(work) == ("hello", "hello")
