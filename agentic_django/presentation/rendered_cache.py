"""A cache of rendered text that is bounded in bytes, because texts differ in size by far."""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

__all__ = ["RenderedCache"]


class RenderedCache[K: Hashable, V]:
    """The values used last, up to a number of bytes. Safe to use from many threads.

    ``size`` returns the bytes of a value without its key. A value that alone exceeds an eighth of
    the bound is computed each time.
    """

    def __init__(self, max_bytes: int, size: Callable[[V], int]) -> None:
        self.max_bytes = max_bytes
        self.bytes = 0
        self._size = size
        self._lock = threading.Lock()
        self._entries: OrderedDict[K, tuple[V, int]] = OrderedDict()

    def get(self, key: K, compute: Callable[[], V]) -> V:
        """Return the value of a key, computed if it is not stored."""
        with self._lock:
            if entry := self._entries.get(key):
                self._entries.move_to_end(key)
                return entry[0]
        value = compute()
        self._put(key, value, 200 + _bytes_of(key) + self._size(value))
        return value

    def clear(self) -> None:
        """Forget all values."""
        with self._lock:
            self._entries.clear()
            self.bytes = 0

    def _put(self, key: K, value: V, size: int) -> None:
        if size > self.max_bytes // 8:
            return
        with self._lock:
            if key in self._entries:
                return
            self._entries[key] = value, size
            self.bytes += size
            while self.bytes > self.max_bytes:
                self.bytes -= self._entries.popitem(last=False)[1][1]


def _bytes_of(key: Any) -> int:
    parts = key if isinstance(key, tuple) else (key,)
    return sum(map(sys.getsizeof, parts))
