"""Executors for the synchronous calls of runs.

A run uses one of two, depending on the process:

- ``CallerThreadExecutor``: the thread that started the run and waits for it;
- ``HostCodeExecutor``: threads that all runs of a worker share, see ``ThreadPools``.
"""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from django.db import Error, close_old_connections

from agentic_django.concurrency.batching import Batcher, BatchWriter
from agentic_django.concurrency.database_connections import check_connections

__all__ = ["CallerThreadExecutor", "HostCodeExecutor", "ThreadPools"]


class CallerThreadExecutor(Executor):
    """Executes calls on the thread that made it, while that thread waits in ``serve``."""

    def __init__(self) -> None:
        self.thread = threading.current_thread()
        self.is_interrupted = False
        """Whether the thread was interrupted while it waited: it executes no more calls."""
        self._count, self._count_lock = 0, threading.Lock()
        self._calls: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()

    @property
    def is_busy(self) -> bool:
        """Whether a call that is submitted now would wait for another one."""
        return self._count > 0

    def submit[T](self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Queue a call. On the executor's own thread, execute it at once."""
        self._add_to_count(1)
        future: Future[T] = Future()
        call = partial(self._execute, future, partial(fn, *args, **kwargs))
        if threading.current_thread() is self.thread:
            call()
        else:
            self._calls.put(call)
        return future

    def serve(self, until: Future[Any]) -> None:
        """Execute calls until a future is done."""
        until.add_done_callback(lambda _: self._calls.put(None))
        while (call := self._calls.get()) is not None:
            call()

    def _execute[T](self, future: Future[T], call: Callable[[], T]) -> None:
        if future.set_running_or_notify_cancel():
            # The receiver of the result may submit its next call at once, and must not find this
            # one.
            _execute(call, future, before_result=partial(self._add_to_count, -1))
        else:
            self._add_to_count(-1)

    def _add_to_count(self, change: int) -> None:
        with self._count_lock:
            self._count += change


class ThreadPools:
    """The threads that all runs of a worker process share, each with one database connection.

    Slow host code cannot delay the app's own reads and writes, because each has its own pool.
    """

    def __init__(self, records: int, host_code: int) -> None:
        self.records = ThreadPoolExecutor(records, "agentic-records")
        """For the app's own reads and writes."""
        self.host_code = ThreadPoolExecutor(host_code, "agentic-host-code")
        """For synchronous tools, steps and factories."""
        self._batchers: dict[Any, Batcher[Any, Any]] = {}
        self._error_count = 0
        self._thread = threading.local()

    def submit_to_batch[E, R](self, write: BatchWriter[E, R], entry: E) -> Future[R]:
        """Write an entry in a batch with other runs' entries. Call it on the event loop."""
        if write not in self._batchers:
            self._batchers[write] = Batcher(write, self.submit_record, self._count_error)
        future: Future[R] = self._batchers[write].add(entry)
        return future

    def submit_record[T](self, call: Callable[[], T]) -> Future[T]:
        """Execute a read or write of the app. Its thread keeps the connection open."""
        return self.records.submit(self._execute_record, call)

    def _execute_record[T](self, call: Callable[[], T]) -> T:
        """Execute a call. After an error in any thread, check this thread's connection first."""
        if getattr(self._thread, "error_count", 0) != self._error_count:
            self._thread.error_count = self._error_count
            with suppress(Error):
                check_connections()
        try:
            return call()
        except Error as error:
            self._count_error(error)
            raise

    def _count_error(self, error: BaseException) -> None:
        self._error_count += isinstance(error, Error)


class HostCodeExecutor(Executor):
    """Executes the host code of one run on the shared threads, one call at a time, in order."""

    def __init__(self, pools: ThreadPools) -> None:
        self.pools = pools
        self._lock = threading.Lock()
        self._waiting: deque[tuple[Callable[[], Any], Future[Any]]] = deque()
        self._is_executing = False

    def submit[T](self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Queue a call after the run's earlier ones."""
        future: Future[T] = Future()
        with self._lock:
            self._waiting.append((partial(fn, *args, **kwargs), future))
            is_first, self._is_executing = not self._is_executing, True
        if is_first:
            self.pools.host_code.submit(self._execute_all)
        return future

    def _execute_all(self) -> None:
        """Execute calls until none waits, with connections that Django manages as in a request."""
        while True:
            with self._lock:
                self._is_executing = bool(self._waiting)
                if not self._waiting:
                    return
                call, future = self._waiting.popleft()
            if future.set_running_or_notify_cancel():
                close_old_connections()
                _execute(call, future, before_result=close_old_connections)


def _execute[T](
    call: Callable[[], T], future: Future[T], *, before_result: Callable[[], None]
) -> None:
    try:
        result = call()
    except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
        before_result()
        future.set_exception(error)
    else:
        before_result()
        future.set_result(result)
