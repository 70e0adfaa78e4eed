"""A database that is locked or away is a 503 that says when to retry."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import Any

import pytest
from django.db import OperationalError, ProgrammingError, connection
from django.test import Client

from agentic_django.models import AgentRun
from agentic_django.urls import urlpatterns
from tests.views.test_login import address

pytestmark = pytest.mark.django_db(transaction=True)

CREATE = "/agents/runs/"
HTMX = {"HX-Request": "true"}


@contextmanager
def away() -> Iterator[None]:
    """Lock the SQLite file, or end the connection to PostgreSQL."""
    connection.ensure_connection()
    if connection.vendor == "sqlite":
        connection.connection.execute("PRAGMA busy_timeout = 0")
        name = connection.settings_dict["NAME"]
        with closing(sqlite3.connect(name, isolation_level=None)) as other:
            other.execute("BEGIN EXCLUSIVE")
            yield
            other.execute("ROLLBACK")
    else:
        ended = connection.connection.info.backend_pid
        thread = threading.Thread(target=end_backend, args=[ended])
        thread.start()
        thread.join()
        yield
    connection.close()


def end_backend(pid: int) -> None:
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_terminate_backend(%s, 5000)", [pid])
    connection.close()


def test_a_client_is_asked_to_retry(client: Client) -> None:
    with away():
        response = client.post(CREATE, {"input": "Hi"})
    assert response.status_code == 503, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert response.headers["Retry-After"] == "5"
    assert response.json()["code"] == "database_away"
    assert not AgentRun.objects.exists()
    assert client.post(CREATE, {"input": "Hi"}).status_code == 201


def test_htmx_is_shown_a_sentence(client: Client) -> None:
    with away():
        response = client.post(CREATE, {"input": "Hi"}, headers=HTMX)
    assert response.status_code == 503
    assert response.headers["Retry-After"] == "5"
    assert "The database is busy or cannot be reached." in response.text
    assert "<html" not in response.text


def failing(error: Exception) -> Any:
    def execute(*_: Any) -> Any:
        raise error

    return connection.execute_wrapper(execute)


@pytest.mark.parametrize("pattern", urlpatterns, ids=lambda pattern: str(pattern.name))
def test_each_address_is_unavailable_without_a_database(client: Client, pattern: Any) -> None:
    url = address(pattern)
    methods = client.generic("PUT", url).headers["Allow"].split(", ")
    for method in methods:
        for headers in ({}, HTMX, {"Accept": "text/event-stream"}):
            with failing(OperationalError("server closed the connection unexpectedly")):
                response = client.generic(method, url, headers=headers)
            assert response.status_code == 503
            assert response.headers["Retry-After"] == "5"


def test_a_faulty_statement_is_not_an_unavailable_database(client: Client) -> None:
    wrong = OperationalError("no such table: x")
    wrong.__cause__ = cause = sqlite3.OperationalError("no such table: x")
    cause.sqlite_errorcode = sqlite3.SQLITE_ERROR
    for error in (wrong, ProgrammingError("no such table: x")):
        with failing(error), pytest.raises(type(error)):
            client.get(CREATE)


def test_a_browser_receives_the_projects_own_page(client: Client) -> None:
    client.raise_request_exception = False
    with failing(OperationalError("gone")):
        response = client.get("/agents/sessions/", headers={"Accept": "text/html"})
    assert response.status_code == 500
