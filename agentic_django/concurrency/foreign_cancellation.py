"""Distinguishes a cancellation of the current task from a CancelledError that host code raised."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from agentic_django.exceptions import WorkCancelled

__all__ = ["foreign_cancellation_fails"]


@contextmanager
def foreign_cancellation_fails() -> Iterator[None]:
    """Raise WorkCancelled for a CancelledError in this block, unless this task is cancelled.

    A library may raise CancelledError, or await a task that it has cancelled. That is a failure of
    the block. The original error is the cause.
    """
    try:
        yield
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise WorkCancelled from error
