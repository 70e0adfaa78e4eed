"""The one crossing between the event loop and synchronous work.

Each process has one long-lived event loop, on a thread of its own: clients that agents share
are bound to a loop. Synchronous work of a run (ours, synchronous tools, the async ORM within
tools) goes back to the thread that carries the run's task, and so uses that thread's database
connection and joins its transaction. A worker with many slots has no thread for each run: there
all runs share two pools, one for what we record and one for what hosts call.
"""

from __future__ import annotations

import asyncio
import contextvars
import queue
import threading
from collections import deque
from collections.abc import Callable, Coroutine
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from functools import partial
from typing import Any

from asgiref.sync import SyncToAsync, ThreadSensitiveContext, sync_to_async
from django.db import Error, close_old_connections, connections

from agentic_django.concurrency import batching
from agentic_django.concurrency.process_state import process

__all__ = [
    "cancel_task",
    "drop_broken_connections",
    "is_executing_run",
    "is_pooled",
    "release_request_thread",
    "run_aside",
    "run_host_code",
    "run_on_loop",
    "run_recording",
    "run_sync",
    "start_on_loop",
    "use_pools",
    "write_batched",
]


class CallerThread(Executor):
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


class ThreadPools:
    """The threads that all runs of a worker with many slots share, each with one connection."""

    def __init__(self, records: int, work: int) -> None:
        self.records = ThreadPoolExecutor(records, "agentic-records")
        self.work = ThreadPoolExecutor(work, "agentic-work")
        self._batches: dict[Any, batching.Batcher[Any, Any]] = {}
        self._errors = 0
        self._mine = threading.local()

    def together[E, R](self, write: batching.BatchWriter[E, R], entry: E) -> Future[R]:
        """Have an entry written with those of other runs; to be called on the loop."""
        if write not in self._batches:
            self._batches[write] = batching.Batcher(write, self.record, self._note)
        future: Future[R] = self._batches[write].add(entry)
        return future

    def record[T](self, work: Callable[[], T]) -> Future[T]:
        """Read or write what is the app's own; the thread keeps its connection."""
        return self.records.submit(self._on_kept_connection, work)

    def _on_kept_connection[T](self, work: Callable[[], T]) -> T:
        """Work; where one thread's connection breaks, the others look at theirs first, too."""
        if getattr(self._mine, "errors", 0) != self._errors:
            self._mine.errors = self._errors
            with suppress(Error):
                _doubt_connections()
        try:
            return work()
        except Error as error:
            self._note(error)
            raise

    def _note(self, error: BaseException) -> None:
        self._errors += isinstance(error, Error)


class HostCalls(Executor):
    """Does what a host calls for one run, a call at a time, on threads that runs share."""

    def __init__(self, pools: ThreadPools) -> None:
        self.pools = pools
        self._lock = threading.Lock()
        self._waiting: deque[Callable[[], None]] = deque()
        self._is_at_work = False

    def submit[T](self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Queue a call behind the run's earlier ones."""
        future: Future[T] = Future()
        work = partial(_fulfil, future, partial(fn, *args, **kwargs))
        with self._lock:
            self._waiting.append(work)
            starts, self._is_at_work = not self._is_at_work, True
        if starts:
            self.pools.work.submit(self._work_off)
        return future

    def _next(self) -> Callable[[], None] | None:
        with self._lock:
            self._is_at_work = bool(self._waiting)
            return self._waiting.popleft() if self._waiting else None

    def _work_off(self) -> None:
        while work := self._next():
            work()


def _fulfil[T](future: Future[T], work: Callable[[], T]) -> None:
    """Do a host's call on a shared thread, with connections as Django has them for a request."""
    if not future.set_running_or_notify_cancel():
        return
    close_old_connections()
    try:
        outcome = work()
    except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
        close_old_connections()
        future.set_exception(error)
    else:
        close_old_connections()
        future.set_result(outcome)


_lane: contextvars.ContextVar[CallerThread | HostCalls | None] = contextvars.ContextVar(
    "agentic_lane", default=None
)


class _Router(ThreadPoolExecutor):
    """The loop's default executor: sends work of a run to the run's own thread."""

    def submit[T](self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        lane = _lane.get()
        if lane is None:
            return super().submit(fn, *args, **kwargs)
        return lane.submit(fn, *args, **kwargs)


class ExecutingThread(threading.local):
    """Whether the present thread executes a run."""

    is_executing = False


class EventLoop:
    """This process's loop, and its threads beside the runs'; started when first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.present: asyncio.AbstractEventLoop | None = None
        self.pools: ThreadPools | None = None
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


def run_on_loop[T](work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Run async work on the process's loop; this thread does its synchronous parts meanwhile."""
    lane = CallerThread()
    future = asyncio.run_coroutine_threadsafe(_in_lane(work, lane), process.get(EventLoop).loop())
    outermost = not is_executing_run()
    thread = process.get(ExecutingThread)
    thread.is_executing = True
    try:
        lane.serve(future)
    except BaseException:  # This thread was interrupted, and will not do more of the work.
        future.cancel()
        raise
    finally:
        thread.is_executing = not outermost
        # What was called back here told asgiref that this thread belongs to our loop; what the
        # host runs here next through ``async_to_sync`` is to have a loop of its own again.
        vars(SyncToAsync.threadlocal).pop("main_event_loop", None)
    return future.result()


def use_pools(*, records: int, work: int) -> ThreadPools:
    """Let all runs of this process share so many threads for records and for hosts' work."""
    pools = process.get(EventLoop).pools = ThreadPools(records, work)
    return pools


def is_pooled() -> bool:
    """Whether the runs of this process share threads."""
    return process.get(EventLoop).pools is not None


def start_on_loop[T](work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
    """Run async work on the process's loop, its synchronous parts on the shared threads."""
    loop = process.get(EventLoop)
    assert loop.pools is not None, "Call use_pools() first."
    return asyncio.run_coroutine_threadsafe(_in_lane(work, HostCalls(loop.pools)), loop.loop())


def run_recording[T](work: Callable[..., T], *args: Any) -> T:
    """Do synchronous work of the worker's own on a shared thread, and wait for it."""
    pools = process.get(EventLoop).pools
    assert pools is not None, "Call use_pools() first."
    return pools.record(partial(work, *args)).result()


async def _in_lane[T](
    work: Callable[[], Coroutine[Any, Any, T]], lane: CallerThread | HostCalls
) -> T:
    _lane.set(lane)
    async with ThreadSensitiveContext(executor=lane):
        return await work()


def is_process_loop(loop: asyncio.AbstractEventLoop) -> bool:
    """Whether this is the process's long-lived loop, and not one that a host runs."""
    return loop is process.get(EventLoop).present


def is_executing_run() -> bool:
    """Whether this thread is carrying a run now."""
    return process.get(ExecutingThread).is_executing


async def run_sync[T](fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Do synchronous work of a run, on the thread that has the run's connection."""
    lane = _lane.get()
    if lane is None:  # A run that its host performs inline: the host's own thread for such work.
        return await sync_to_async(fn, thread_sensitive=True)(*args, **kwargs)
    if isinstance(lane, HostCalls):
        work = partial(copy_context().run, partial(fn, *args, **kwargs))
        return await asyncio.wrap_future(lane.pools.record(work))
    return await _on_lane(lane, fn, *args, **kwargs)


async def _on_lane[T](lane: CallerThread, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    if threading.current_thread() is lane.thread:
        return fn(*args, **kwargs)
    return await asyncio.to_thread(fn, *args, **kwargs)


async def run_host_code[T](fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Do what a host's synchronous function does for a run; it may take long.

    Where runs share threads it keeps none that other runs' records need.
    """
    lane = _lane.get()
    if not isinstance(lane, HostCalls):
        return await run_sync(fn, *args, **kwargs)
    work = partial(copy_context().run, partial(fn, *args, **kwargs))
    return await asyncio.wrap_future(lane.submit(work))


async def write_batched[E, R](
    write: batching.BatchWriter[E, R], entry: E, *, joined: bool = False
) -> R:
    """Write an entry of a run; where runs share threads, with those of other runs.

    Elsewhere it is written like what is done ``aside``; or, if it is to be part of its caller's
    transaction, like what is done by ``call``.
    """
    lane = _lane.get()
    if isinstance(lane, HostCalls):
        return await asyncio.wrap_future(lane.pools.together(write, entry))
    return await (run_sync if joined else run_aside)(batching.write_one, write, entry)


async def run_aside[T](fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> T:
    """Do synchronous work of a run even if a synchronous tool still occupies its thread.

    In that case another thread does it, on a database connection of its own.
    """
    lane = _lane.get()
    if not isinstance(lane, CallerThread) or not lane.busy:
        return await run_sync(fn, *args, **kwargs)
    work = partial(_with_own_connection, partial(fn, *args, **kwargs))
    return await asyncio.wrap_future(process.get(EventLoop).pool.submit(work))


def release_request_thread() -> None:
    """End the thread that serves the synchronous parts of the current request, which waits idle.

    If there are more such parts, they are given another one.
    """
    context = SyncToAsync.thread_sensitive_context.get(None)
    if context is None:
        return
    executor = SyncToAsync.context_to_thread_executor.pop(context, None)
    if executor is not None:
        executor.shutdown(wait=False)


def drop_broken_connections() -> None:
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


def _doubt_connections() -> None:
    """Ask the server whether this thread's connections still work, and part with the others."""
    for connection in connections.all(initialized_only=True):
        connection.errors_occurred = True
    drop_broken_connections()


def cancel_task(task: asyncio.Task[Any]) -> None:
    """Cancel a task from any thread, whichever loop it is of."""
    with suppress(RuntimeError):  # Its loop is closed, and the task with it.
        task.get_loop().call_soon_threadsafe(task.cancel)
