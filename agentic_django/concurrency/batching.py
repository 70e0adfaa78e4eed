"""Does for several at once what each asks for by itself: what waits together goes together.

While one batch is being written, what else comes waits, and is the next one. So a batch is small
where there is little to do and nobody waits for it to fill.
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

_MOST = 32
"""At most so many entries are written together."""

_WRITERS = 2
"""So many batches of a kind are written at once."""


class BatchWriter[E, R](Protocol):
    """Writes entries, all or none, and returns what came of each.

    If it is not to wait, it fails where it would have to wait for another's lock: WouldBlock, say.
    """

    def __call__(self, entries: Sequence[E], /, *, waits: bool = True) -> Sequence[R]:
        """Write the entries."""


class WouldBlock(Exception):
    """What is to be written is just being written by another."""


def write_one[E, R](write: BatchWriter[E, R], entry: E) -> R:
    """Write one entry by itself, and return its result."""
    return write([entry])[0]


class Batcher[E, R]:
    """What waits to be written by one function.

    ``start`` is given what writes a batch, and has it done on another thread; ``failed`` is told
    of an error, on the thread on which it happened.
    """

    def __init__(
        self,
        write: BatchWriter[E, R],
        start: Callable[[Callable[[], None]], Any],
        failed: Callable[[BaseException], None],
    ) -> None:
        self.write, self.start, self.failed = write, start, failed
        self._lock = threading.Lock()
        self._waiting: deque[tuple[E, Future[R]]] = deque()
        self._writers = 0

    def add(self, entry: E) -> Future[R]:
        """Have an entry written with others; the future says what came of it."""
        future: Future[R] = Future()
        with self._lock:
            self._waiting.append((entry, future))
            is_enough = self._writers == _WRITERS
            self._writers += not is_enough
        if not is_enough:
            self.start(self._write_batch)
        return future

    def _take(self) -> list[tuple[E, Future[R]]]:
        with self._lock:
            count = min(_MOST, len(self._waiting))
            return [self._waiting.popleft() for _ in range(count)]

    def _write_batch(self) -> None:
        """Write the entries that wait now, then start the next batch if more have arrived."""
        pairs = [pair for pair in self._take() if pair[1].set_running_or_notify_cancel()]
        try:
            results = self.write([entry for entry, _ in pairs], waits=False) if pairs else ()
        except BaseException as error:  # noqa: BLE001 - each says for itself what is wrong
            logger.debug("A batch of %s is written one by one: %r", len(pairs), error)
            self.failed(error)
            for pair in pairs:
                self.start(partial(self._write_alone, *pair))
        else:
            for (_, future), result in zip(pairs, results, strict=True):
                future.set_result(result)
        finally:
            self._follow()

    def _write_alone(self, entry: E, future: Future[R]) -> None:
        """Write an entry by itself, on a thread that batches do not need."""
        try:
            result = write_one(self.write, entry)
        except BaseException as error:  # noqa: BLE001 - raised where the result is asked for
            self.failed(error)
            future.set_exception(error)
        else:
            future.set_result(result)

    def _follow(self) -> None:
        with self._lock:
            is_more = bool(self._waiting)
            self._writers -= not is_more
        if is_more:
            self.start(self._write_batch)
