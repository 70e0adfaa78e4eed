"""Closes the database connections of the present thread when they broke, or after one call."""

from __future__ import annotations

from collections.abc import Callable

from django.db import close_old_connections, connections

__all__ = ["check_connections", "close_broken_connections", "with_own_connection"]


def close_broken_connections() -> None:
    """Close connections that do not work any more, or are too old; call it after an error or a run.

    A connection within a transaction stays open: it belongs to the caller, for example to a test.
    Django's ``close_old_connections`` closes it.
    """
    for connection in connections.all(initialized_only=True):
        if not connection.in_atomic_block:
            connection.close_if_unusable_or_obsolete()


def check_connections() -> None:
    """Query the server over each connection, and close those that do not work."""
    for connection in connections.all(initialized_only=True):
        connection.errors_occurred = True  # Django checks only connections that had an error.
    close_broken_connections()


def with_own_connection[T](call: Callable[[], T]) -> T:
    """Execute a call, and close the connections that it opened."""
    close_old_connections()
    try:
        return call()
    finally:
        connections.close_all()
