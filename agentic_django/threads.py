"""The one crossing between the event loop and synchronous work.

Each process has one long-lived event loop, on a thread of its own: clients that agents share
are bound to a loop. Synchronous work of a run (ours, synchronous tools, the async ORM within
tools) goes back to the thread that carries the run's task, and so uses that thread's database
connection and joins its transaction.
"""

from __future__ import annotations

import asyncio
import contextvars
import os
import queue
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, sync_to_async
from django.db import close_old_connections, connections

__all__ = ["aside", "call", "cancel_task", "in_run", "reconnect", "release", "run_here"]

_here = threading.local()


class Lane(Executor):
    """Runs what is submitted on the thread that made it, while that thread waits in ``serve``."""

    def __init__(self) -> None:
        self.thread = threading.current_thread()
        self._count, self._counting = 0, threading.Lock()
        self._work: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    @property
    def busy(self) -> bool:
        """Whether what is submitted now would have to wait."""
        return self._count > 0

    def _add(self, change: int) -> None:
        with self._counting:
            self._count += change

    def submit[T](self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Queue a call; from the lane's own thread, do it at once."""
        self._add(1)
        future: Future[T] = Future()
        work = partial(self._fulfil, future, partial(fn, *args, **kwargs))
        if threading.current_thread() is self.thread:
            work()
        else:
            self._work.put(work)
        return future

    def serve(self, until: Future[Any]) -> None:
        """Do what is submitted until a future is done."""
        until.add_done_callback(lambda _: self._work.put(None))
        while (work := self._work.get()) is not None:
            work()

    def _fulfil[T](self, future: Future[T], work: Callable[[], T]) -> None:
        if not future.set_running_or_notify_cancel():
            self._add(-1)
            return
        # Not counted any more before the result is known: who gets it may have more to do here.
        try:
            outcome = work()
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            self._add(-1)
            future.set_exception(error)
        else:
            self._add(-1)
            future.set_result(outcome)


_lane: contextvars.ContextVar[Lane | None] = contextvars.ContextVar("agentic_lane", default=None)


class _Router(ThreadPoolExecutor):
    """The loop's default executor: sends work of a run to the run's own thread."""

    def submit[T](self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        lane = _lane.get()
        if lane is None:
            return super().submit(fn, *args, **kwargs)
        return lane.submit(fn, *args, **kwargs)


class _Process:
    """This process's loop, and its threads beside the runs'; started when first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.present: asyncio.AbstractEventLoop | None = None
        self.pool = ThreadPoolExecutor(max_workers=4, thread_name_prefix="agentic-aside")

    def loop(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self.present is None:
                self.present = self._start()
            return self.present

    def _start(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        loop.set_default_executor(_Router(thread_name_prefix="agentic-default"))
        threading.Thread(target=_turn, args=(loop,), name="agentic-loop", daemon=True).start()
        return loop


def _turn(loop: asyncio.AbstractEventLoop) -> None:
    """Run a loop for good: a tool that calls ``exit()`` ends its own run, not all others."""
    while not loop.is_closed():
        with suppress(SystemExit, KeyboardInterrupt):
            loop.run_forever()


_process = _Process()


def _forget() -> None:
    """A forked child has the loop's object, but not its thread."""
    global _process, _here
    _process, _here = _Process(), threading.local()


os.register_at_fork(after_in_child=_forget)


def run_here[T](work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run async work on the process's loop; this thread does its synchronous parts meanwhile."""
    lane = Lane()
    future = asyncio.run_coroutine_threadsafe(_in_lane(work, lane), _process.loop())
    outermost = not in_run()
    _here.running = True
    try:
        lane.serve(future)
    except BaseException:  # This thread was interrupted, and will not do more of the work.
        future.cancel()
        raise
    finally:
        _here.running = not outermost
        # What was called back here told asgiref that this thread belongs to our loop; what the
        # host runs here next through ``async_to_sync`` is to have a loop of its own again.
        vars(SyncToAsync.threadlocal).pop("main_event_loop", None)
    return future.result()


async def _in_lane[T](work: Callable[[], Coroutine[Any, Any, T]], lane: Lane) -> T:
    _lane.set(lane)
    async with ThreadSensitiveContext(executor=lane):
        return await work()


def is_own(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether this is the process's long-lived loop, and not one that a host runs."""
    return loop is _process.present


def in_run() -> bool:
    """Whether this thread is carrying a run now."""
    return getattr(_here, "running", False)


async def call[T](fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Do synchronous work of a run, on the thread that has the run's connection."""
    lane = _lane.get()
    if lane is None:  # A run that its host performs inline: the host's own thread for such work.
        return await sync_to_async(fn, thread_sensitive=True)(*args, **kwargs)
    if threading.current_thread() is lane.thread:
        return fn(*args, **kwargs)
    return await asyncio.to_thread(fn, *args, **kwargs)


async def aside[T](fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Do synchronous work of a run even if a synchronous tool still occupies its thread.

    In that case another thread does it, on a database connection of its own.
    """
    lane = _lane.get()
    if lane is None or not lane.busy:
        return await call(fn, *args, **kwargs)
    work = partial(_with_own_connection, partial(fn, *args, **kwargs))
    return await asyncio.wrap_future(_process.pool.submit(work))


def release() -> None:
    """End the thread that serves the synchronous parts of the current request, which waits idle.

    If there are more such parts, they are given another one.
    """
    context = SyncToAsync.thread_sensitive_context.get(None)
    if context is None:
        return
    executor = SyncToAsync.context_to_thread_executor.pop(context, None)
    if executor is not None:
        executor.shutdown(wait=False)


def reconnect() -> None:
    """Part with this thread's connections after what went wrong: it may have been they.

    A connection within a transaction is the caller's (a test's, say) and stays.
    """
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


def _with_own_connection[T](work: Callable[[], T]) -> T:
    close_old_connections()
    try:
        return work()
    finally:
        connections.close_all()


def cancel_task(task: asyncio.Task[Any]) -> None:
    """Cancel a task from any thread, whichever loop it is of."""
    with suppress(RuntimeError):  # Its loop is closed, and the task with it.
        task.get_loop().call_soon_threadsafe(task.cancel)
