"""The event loop of a process, and the calls between it and synchronous code.

Each process has one long-lived loop on its own thread, because the HTTP clients that agents share
are bound to a loop. The coroutines of all runs execute there. Their synchronous calls execute on
other threads. In most processes, a run's calls execute on the thread that started the run. So the
run uses the caller's database connection and joins its transaction::

    caller's thread                              event loop
    ---------------                              ----------
    run_on_loop(work)      -- starts -->         await work()
      executes fn          <-- waits for --        await run_sync(fn)
      executes tool        <-- waits for --        await run_host_code(tool)
    returns the result     <-- ends --

A worker with many slots does not have a thread for each run. After ``use_thread_pools``, all its
runs share two pools, see ``executors.ThreadPools``::

    worker's threads                             event loop
    ----------------                             ----------
    start_on_loop(work)    -- starts -->         await work()
    records pool: fn       <-- waits for --        await run_sync(fn)
    host code pool: tool   <-- waits for --        await run_host_code(tool)

Private names of ``asgiref`` and ``concurrent.futures`` are used in this module only.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from concurrent.futures import thread as futures_thread
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, sync_to_async

from agentic_django.concurrency.batching import BatchWriter, write_one
from agentic_django.concurrency.database_connections import with_own_connection
from agentic_django.concurrency.executors import (
    CallerThreadExecutor,
    HostCodeExecutor,
    ThreadPools,
)
from agentic_django.concurrency.process_state import process

__all__ = [
    "cancel_task",
    "has_thread_pools",
    "is_executing_run",
    "is_interpreter_exiting",
    "is_process_loop",
    "is_run_interrupted",
    "release_request_thread",
    "run_host_code",
    "run_in_records_pool",
    "run_on_loop",
    "run_sync",
    "run_sync_unqueued",
    "start_on_loop",
    "use_thread_pools",
    "write_batched",
]


class EventLoop:
    """This process's loop and thread pools. Each starts when it is first used."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.started: asyncio.AbstractEventLoop | None = None
        """The loop, once it has started."""
        self.pools: ThreadPools | None = None
        self.spare_threads = ThreadPoolExecutor(4, "agentic-spare")
        """For calls that must not wait for the run's own thread."""

    def start(self) -> asyncio.AbstractEventLoop:
        """Return the loop. The first call starts it."""
        with self._lock:
            if self.started is None:
                loop = asyncio.new_event_loop()
                loop.set_default_executor(_DefaultExecutor(thread_name_prefix="agentic-default"))
                threading.Thread(
                    target=_run_forever, args=(loop,), name="agentic-loop", daemon=True
                ).start()
                self.started = loop
            return self.started


def _run_forever(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop. A tool that calls ``exit()`` ends its own run, not the loop."""
    while not loop.is_closed():
        with suppress(SystemExit, KeyboardInterrupt):
            loop.run_forever()


_run_executor: contextvars.ContextVar[CallerThreadExecutor | HostCodeExecutor | None]
_run_executor = contextvars.ContextVar("agentic_run_executor", default=None)
"""Executes the synchronous calls of the current run."""


class _DefaultExecutor(ThreadPoolExecutor):
    """The loop's default executor, which passes the calls of a run to the run's own executor.

    ``asyncio.to_thread``, with which the SDK calls synchronous tools, uses it.
    """

    def submit[T](self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        executor = _run_executor.get()
        if executor is None:
            return super().submit(fn, *args, **kwargs)
        return executor.submit(fn, *args, **kwargs)


class ExecutingThread(threading.local):
    """Whether the current thread executes a run."""

    is_executing = False


# Starting coroutines, from synchronous code


def run_on_loop[T](work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Execute a coroutine on the process's loop, and return its result.

    While this thread waits, it executes the coroutine's synchronous calls.
    """
    executor = CallerThreadExecutor()
    future = asyncio.run_coroutine_threadsafe(
        _with_executor(work, executor), process.get(EventLoop).start()
    )
    thread = process.get(ExecutingThread)
    was_executing, thread.is_executing = thread.is_executing, True
    try:
        executor.serve(future)
    except BaseException:  # This thread was interrupted, so it executes no more calls.
        executor.is_interrupted = True
        future.cancel()
        raise
    finally:
        thread.is_executing = was_executing
        # After a call on this thread, asgiref has stored our loop for the thread. Without it, the
        # host's next ``async_to_sync`` on this thread gets its own loop again.
        vars(SyncToAsync.threadlocal).pop("main_event_loop", None)
    return future.result()


def use_thread_pools(*, records: int, host_code: int) -> ThreadPools:
    """Make all runs of this process share two thread pools, of the given sizes."""
    pools = process.get(EventLoop).pools = ThreadPools(records, host_code)
    return pools


def has_thread_pools() -> bool:
    """Whether the runs of this process share threads."""
    return process.get(EventLoop).pools is not None


def start_on_loop[T](work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
    """Start a coroutine on the process's loop. Its synchronous calls use the thread pools."""
    executor = HostCodeExecutor(_thread_pools())
    return asyncio.run_coroutine_threadsafe(
        _with_executor(work, executor), process.get(EventLoop).start()
    )


def run_in_records_pool[T](fn: Callable[..., T], *args: Any) -> T:
    """Execute a synchronous call of the worker itself on a shared thread, and wait for it."""
    return _thread_pools().submit_record(partial(fn, *args)).result()


def _thread_pools() -> ThreadPools:
    pools = process.get(EventLoop).pools
    if pools is None:
        raise RuntimeError("This process has no thread pools. Call use_thread_pools() first.")
    return pools


async def _with_executor[T](
    work: Callable[[], Coroutine[Any, Any, T]], executor: CallerThreadExecutor | HostCodeExecutor
) -> T:
    _run_executor.set(executor)
    async with ThreadSensitiveContext(executor=executor):
        return await work()


# Synchronous calls, from a run's coroutines


async def run_sync[T](fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Execute a read or write of the app for a run, on the thread with the run's connection."""
    executor = _run_executor.get()
    if executor is None:  # The host awaits this run itself: use the thread of asgiref.
        return await sync_to_async(fn, thread_sensitive=True)(*args, **kwargs)
    if isinstance(executor, HostCodeExecutor):
        call = _in_this_context(fn, *args, **kwargs)
        return await asyncio.wrap_future(executor.pools.submit_record(call))
    if threading.current_thread() is executor.thread:
        return fn(*args, **kwargs)
    return await asyncio.to_thread(fn, *args, **kwargs)


async def run_host_code[T](fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Execute a synchronous function of the host for a run. The function may take long."""
    executor = _run_executor.get()
    if not isinstance(executor, HostCodeExecutor):
        return await run_sync(fn, *args, **kwargs)
    return await asyncio.wrap_future(executor.submit(_in_this_context(fn, *args, **kwargs)))


async def run_sync_unqueued[T](fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Execute a read or write of the app without waiting for a synchronous tool of the run.

    If a tool occupies the run's thread, a spare thread executes the call on its own database
    connection.
    """
    executor = _run_executor.get()
    if isinstance(executor, CallerThreadExecutor) and executor.is_busy:
        call = partial(with_own_connection, partial(fn, *args, **kwargs))
        return await asyncio.wrap_future(process.get(EventLoop).spare_threads.submit(call))
    return await run_sync(fn, *args, **kwargs)


async def write_batched[E, R](write: BatchWriter[E, R], entry: E, *, joined: bool = False) -> R:
    """Write an entry of a run, in a batch with other runs' entries if runs share threads.

    Otherwise the entry is written alone. If it must be ``joined`` to the caller's transaction,
    ``run_sync`` writes it, else ``run_sync_unqueued``.
    """
    executor = _run_executor.get()
    if isinstance(executor, HostCodeExecutor):
        return await asyncio.wrap_future(executor.pools.submit_to_batch(write, entry))
    return await (run_sync if joined else run_sync_unqueued)(write_one, write, entry)


def _in_this_context[T](fn: Callable[..., T], *args: Any, **kwargs: Any) -> Callable[[], T]:
    """Return a call that runs with a copy of the current context variables."""
    return partial(copy_context().run, partial(fn, *args, **kwargs))


# State of loops and threads, for other modules


def is_process_loop(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether this is the process's long-lived loop, not a loop that a host runs."""
    return loop is process.get(EventLoop).started


def is_executing_run() -> bool:
    """Whether this thread executes a run now, in ``run_on_loop``."""
    return process.get(ExecutingThread).is_executing


def is_run_interrupted() -> bool:
    """Whether the present run must stop because its thread was interrupted or the process ends."""
    executor = _run_executor.get()
    is_interrupted = isinstance(executor, CallerThreadExecutor) and executor.is_interrupted
    return is_interrupted or is_interpreter_exiting()


def is_interpreter_exiting() -> bool:
    """Whether the process is exiting, although threads of pools still execute calls.

    The interpreter waits for these threads, including ours. By then its main thread has ended, or
    the standard library has shut down its pools. The second state has no public name.
    """
    return not threading.main_thread().is_alive() or getattr(futures_thread, "_shutdown", False)


def cancel_task(task: asyncio.Task[Any]) -> None:
    """Cancel a task of any loop, from any thread."""
    with suppress(RuntimeError):  # The loop is closed, so the task has ended.
        task.get_loop().call_soon_threadsafe(task.cancel)


def release_request_thread() -> None:
    """End the idle thread that asgiref keeps for the synchronous parts of the current request.

    If the request has more synchronous parts, asgiref starts another thread.
    """
    context = SyncToAsync.thread_sensitive_context.get(None)
    if context is None:
        return
    executor = SyncToAsync.context_to_thread_executor.pop(context, None)
    if executor is not None:
        executor.shutdown(wait=False)
