"""Closes the database connections of the current thread if they are broken, or after one call."""

from __future__ import annotations

from collections.abc import Callable

from django.db import close_old_connections, connections

__all__ = ["check_connections", "close_broken_connections", "with_own_connection"]


def close_broken_connections() -> None:
    """Close connections that are broken or too old. Call it after an error or a run.

    A connection in a transaction stays open, because it belongs to the caller, for example a test.
    Django's ``close_old_connections`` would close it.
    """
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


def check_connections() -> None:
    """Query the server over each connection, and close those that do not work."""
    for connection in connections.all(initialized_only=True):
        connection.errors_occurred = True  # Django checks only connections that have had an error.
    close_broken_connections()


def with_own_connection[T](call: Callable[[], T]) -> T:
    """Execute a call, and close the connections that it opened."""
    close_old_connections()
    try:
        return call()
    finally:
        connections.close_all()
