"""Holds the state of one attempt in memory. ``AgentRun`` holds only columns.

An attempt begins with a claim and belongs to one process. It ends with the write that completes,
suspends, fails, cancels or requeues its run.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from agentic_django.models import AgentRun

__all__ = ["Attempt"]


class Attempt:
    """One attempt to execute a run, from its claim to its end.

    ``joined_transaction`` is true if the claim is part of the caller's transaction. Other
    connections cannot see the run's changes until that transaction commits.
    """

    def __init__(self, run: AgentRun, *, joined_transaction: bool = False) -> None:
        self.run = run
        self.number = run.attempt
        """Guards every write of the attempt: the row must still have this number."""
        self.joined_transaction = joined_transaction
        self.has_lost_run = False
        """Whether this process has noticed that the run was cancelled or claimed elsewhere."""
        self.has_drafts = False
        """Whether this attempt may have written partial messages."""
        self.started = time.monotonic()
        self.lock = threading.RLock()
        """Held during a write, because two threads of an attempt may write."""
        self._replaced: dict[str, Any] | None = None

    def __repr__(self) -> str:
        return f"<Attempt {self.number} of run {self.run.pk}>"

    @property
    def active_seconds(self) -> float:
        """Return the seconds for which this attempt and earlier ones have executed the run."""
        return self.run.active_seconds + time.monotonic() - self.started

    def assign(self, columns: Mapping[str, Any]) -> None:
        """Set the attributes of the run to the values that were just written to its row.

        Values that the database computes are left out.
        """
        for name, value in columns.items():
            if not hasattr(value, "resolve_expression"):
                if self._replaced is not None:
                    self._replaced.setdefault(name, getattr(self.run, name))
                setattr(self.run, name, value)

    @contextmanager
    def restored_on_error(self) -> Iterator[None]:
        """Undo assignments made in this block if it fails, because its transaction rolls back."""
        outer = self._replaced
        replaced: dict[str, Any] = {}
        self._replaced = replaced
        try:
            yield
        except BaseException:
            for name, value in replaced.items():
                setattr(self.run, name, value)
            raise
        else:
            if outer is not None:
                outer.update({**replaced, **outer})
        finally:
            self._replaced = outer
