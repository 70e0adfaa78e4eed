"""Writes entries of several runs in one transaction, if they wait at the same moment.

A ``Batcher`` does not delay an entry to collect more. An entry that arrives while the batcher is
idle is written at once, alone. Entries that arrive while earlier batches are being written wait,
and form the next batch::

    time -->
    writer 1   [a]--------->[c d e]--------->[g]->
    writer 2     [b]--------------->[f]->
    arrivals   a b c d e            f g

If a batch fails, or would wait for a lock, each of its entries is written separately on another
thread. So an entry that cannot be written does not affect the others.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol

__all__ = ["BatchWriter", "Batcher", "WouldBlock", "write_one"]

logger = logging.getLogger(__name__)

_MAX_ENTRIES = 32
"""The largest number of entries in a batch."""

_WRITERS = 2
"""The number of batches that each ``Batcher`` writes at the same time."""


class BatchWriter[E, R](Protocol):
    """A function that writes all entries or none, and returns a result for each.

    With ``waits=False`` it must raise an error, for example ``WouldBlock``, instead of waiting for
    a lock that another transaction or thread holds.
    """

    def __call__(self, entries: Sequence[E], /, *, waits: bool = True) -> Sequence[R]:
        """Write the entries."""


class WouldBlock(Exception):
    """Another thread or transaction has locked a row, and the writer must not wait."""


def write_one[E, R](write: BatchWriter[E, R], entry: E) -> R:
    """Write one entry separately, and return its result."""
    return write([entry])[0]


class Batcher[E, R]:
    """Collects entries for one ``BatchWriter``, and writes them in batches.

    ``submit`` executes a call on another thread. ``on_error`` receives each error of the writer,
    on the thread where it was raised.
    """

    def __init__(
        self,
        write: BatchWriter[E, R],
        submit: Callable[[Callable[[], None]], Any],
        on_error: Callable[[BaseException], None],
    ) -> None:
        self.write, self.submit, self.on_error = write, submit, on_error
        self._lock = threading.Lock()
        self._waiting: deque[tuple[E, Future[R]]] = deque()
        self._writer_count = 0

    def add(self, entry: E) -> Future[R]:
        """Write an entry soon; the future has its result, or its error."""
        future: Future[R] = Future()
        with self._lock:
            self._waiting.append((entry, future))
            is_writer_free = self._writer_count < _WRITERS
            self._writer_count += is_writer_free
        if is_writer_free:
            self.submit(self._write_batch)
        return future

    def _write_batch(self) -> None:
        """Write the entries that wait now. Then start the next batch if more have arrived."""
        with self._lock:
            count = min(_MAX_ENTRIES, len(self._waiting))
            waiting = [self._waiting.popleft() for _ in range(count)]
        # A cancelled entry is not written. The others cannot be cancelled from now on.
        batch = [each for each in waiting if each[1].set_running_or_notify_cancel()]
        try:
            results = self.write([entry for entry, _ in batch], waits=False) if batch else ()
        except BaseException as error:  # noqa: BLE001 - each entry raises its own when written alone
            logger.debug("Writing the %s entries of a batch one by one: %r", len(batch), error)
            self.on_error(error)
            for entry, future in batch:
                self.submit(partial(self._write_alone, entry, future))
        else:
            for (_, future), result in zip(batch, results, strict=True):
                future.set_result(result)
        finally:
            with self._lock:
                has_more = bool(self._waiting)
                self._writer_count -= not has_more
            if has_more:
                self.submit(self._write_batch)

    def _write_alone(self, entry: E, future: Future[R]) -> None:
        """Write one entry on a thread that no batch occupies. It may wait for locks."""
        try:
            result = write_one(self.write, entry)
        except BaseException as error:  # noqa: BLE001 - raised where the result is awaited
            self.on_error(error)
            future.set_exception(error)
        else:
            future.set_result(result)
