"""Contracts with asgiref and the standard library, whose private names event_loop uses.

If one of these tests fails after an update, change the function that its message names.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from asgiref.sync import SyncToAsync, ThreadSensitiveContext, async_to_sync, sync_to_async

from agentic_django.concurrency import event_loop


def changed(name: str, function: str) -> str:
    return f"{name} has changed. Look at concurrency.event_loop.{function}, which depends on it."


def test_asgiref_notes_the_main_loop_for_a_thread() -> None:
    async def work() -> Any:
        return await sync_to_async(
            lambda: getattr(SyncToAsync.threadlocal, "main_event_loop", None)
        )()

    noted = event_loop.run_on_loop(work)
    assert noted is not None, changed("SyncToAsync.threadlocal.main_event_loop", "run_on_loop")
    assert event_loop.is_process_loop(noted)
    assert not hasattr(SyncToAsync.threadlocal, "main_event_loop"), changed(
        "SyncToAsync.threadlocal", "run_on_loop"
    )


def test_asgiref_executes_on_the_executor_of_a_thread_sensitive_context() -> None:
    async def work() -> str:
        async with ThreadSensitiveContext(executor=pool):
            return await sync_to_async(lambda: threading.current_thread().name)()

    with ThreadPoolExecutor(1, "given") as pool:
        name = asyncio.run(work())
    assert name.startswith("given"), changed("ThreadSensitiveContext(executor=…)", "_with_executor")


def test_asgiref_keeps_the_thread_of_a_request_until_it_is_released() -> None:
    async def request() -> None:
        async with ThreadSensitiveContext() as context:
            thread = await sync_to_async(threading.current_thread)()
            assert SyncToAsync.thread_sensitive_context.get() is context, changed(
                "SyncToAsync.thread_sensitive_context", "release_request_thread"
            )
            assert context in SyncToAsync.context_to_thread_executor, changed(
                "SyncToAsync.context_to_thread_executor", "release_request_thread"
            )
            event_loop.release_request_thread()
            await asyncio.to_thread(thread.join, 20)
            assert not thread.is_alive(), changed(
                "ThreadSensitiveContext", "release_request_thread"
            )
            assert await sync_to_async(threading.current_thread)() is not thread
            event_loop.release_request_thread()
            event_loop.release_request_thread()  # There is no thread to release.

    asyncio.run(request())


def test_outside_a_request_no_thread_is_released() -> None:
    async def work() -> None:
        event_loop.release_request_thread()

    async_to_sync(work)()


EXIT = """
import time
from concurrent.futures import ThreadPoolExecutor
from agentic_django.concurrency import event_loop

def wait():
    end = time.monotonic() + 10
    while not event_loop.is_interpreter_exiting() and time.monotonic() < end:
        time.sleep(0.01)
    print(before, event_loop.is_interpreter_exiting())

before = event_loop.is_interpreter_exiting()
ThreadPoolExecutor(1).submit(wait)
"""


def test_the_standard_library_notes_that_pools_must_end() -> None:
    done = subprocess.run(
        [sys.executable, "-c", EXIT], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stdout.strip() == "False True", (
        changed("concurrent.futures.thread._shutdown", "is_interpreter_exiting") + done.stderr
    )


@pytest.mark.parametrize("name", ["threadlocal", "main_event_loop", "context_to_thread_executor"])
def test_private_names_are_used_in_one_module(name: str) -> None:
    from pathlib import Path

    import agentic_django

    root = Path(agentic_django.__file__).parent
    users = [path.name for path in root.rglob("*.py") if name in path.read_text()]
    assert users == ["event_loop.py"]
