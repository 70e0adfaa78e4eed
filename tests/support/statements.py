"""Counting SQL statements, less those that only open or close a transaction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from django.db import connection
from django.test.utils import CaptureQueriesContext

NOT_COUNTED = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE")


@contextmanager
def statements() -> Iterator[list[str]]:
    """Collect the statements of a block; the list is filled when the block ends."""
    found: list[str] = []
    with CaptureQueriesContext(connection) as captured:
        yield found
    sql = [query["sql"] for query in captured.captured_queries]
    found += [statement for statement in sql if not statement.startswith(NOT_COUNTED)]


@contextmanager
def at_most(number: int) -> Iterator[None]:
    """Fail if the block needs more statements."""
    with statements() as found:
        yield
    assert len(found) <= number, "\n".join(found)
