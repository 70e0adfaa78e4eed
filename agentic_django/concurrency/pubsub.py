"""Tells processes that show runs that one of them has something new.

What is told is a run's id and nothing else; who hears it reads the database. Telling happens
after the commit, from a thread and a connection of its own, at most once every
``COALESCE_SECONDS``: a NOTIFY within the journal's transactions would make them commit one
after another. Nobody depends on being told: readers look by themselves too, only less often.
"""

from __future__ import annotations

import threading
import time
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any, Protocol

from django.db import connections

from agentic_django.concurrency.background_thread import BackgroundThread
from agentic_django.concurrency.process_state import process
from agentic_django.conf import settings
from agentic_django.exceptions import BadSetting
from agentic_django.signals import logger

__all__ = ["COALESCE_SECONDS", "Subscriber", "publish", "transport"]

CHANNEL = "agentic_django"
COALESCE_SECONDS = 0.02
_MOST_IDS = 200  # In one message: PostgreSQL allows 8,000 bytes.
_IDLE_SECONDS = 30.0
_TEST_SECONDS = 3.0
_LONGEST_PAUSE = 10.0


def transport() -> str:
    """Return how processes wake each other: postgres, redis or poll."""
    if settings.WAKEUP != "auto":
        return settings.WAKEUP
    if settings.REDIS_URL:
        return "redis"
    is_postgres = connections[settings.DATABASE].vendor == "postgresql"
    return "postgres" if is_postgres and _has("psycopg") else "poll"


def _has(module: str) -> bool:
    try:
        __import__(module)
    except ImportError:
        return False
    return True


class Channel(Protocol):
    """A connection over which ids are told and heard."""

    def send(self, text: str) -> None:
        """Tell whoever listens."""

    def listen(self) -> None:
        """Hear what is told from now on."""

    def wait(self, seconds: float) -> list[str]:
        """Return what was told; an empty list if that is nothing for so long."""

    def close(self) -> None:
        """Give the connection back."""


class _Postgres:
    """LISTEN and NOTIFY, on a connection that Django does not know of."""

    def __init__(self) -> None:
        import psycopg  # noqa: PLC0415 - an extra

        wrapper = connections[settings.DATABASE]
        if wrapper.vendor != "postgresql":
            raise BadSetting(f"{settings.DATABASE!r} is no PostgreSQL database.")
        params = wrapper.get_connection_params()
        params.pop("pool", None)
        self._connection: Any = psycopg.connect(**{**params, "autocommit": True})

    def send(self, text: str) -> None:
        self._connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, text))

    def listen(self) -> None:
        self._connection.execute(f"LISTEN {CHANNEL}")

    def wait(self, seconds: float) -> list[str]:
        told = self._connection.notifies(timeout=seconds, stop_after=1)
        return [notice.payload for notice in told]

    def close(self) -> None:
        self._connection.close()


class _Redis:
    """A channel of a Redis-compatible server."""

    def __init__(self) -> None:
        import redis  # noqa: PLC0415 - an extra

        if not settings.REDIS_URL:
            raise BadSetting("AGENTIC_DJANGO_REDIS_URL is not set.")
        self._client = redis.Redis.from_url(
            settings.REDIS_URL, socket_connect_timeout=_TEST_SECONDS, health_check_interval=10
        )
        self._client.ping()
        self._heard: Any = None

    def send(self, text: str) -> None:
        self._client.publish(CHANNEL, text)

    def listen(self) -> None:
        self._heard = self._client.pubsub(  # type: ignore[no-untyped-call]
            ignore_subscribe_messages=True
        )
        self._heard.subscribe(CHANNEL)

    def wait(self, seconds: float) -> list[str]:
        told: list[str] = []
        while message := self._heard.get_message(timeout=0 if told else seconds):
            told.append(message["data"].decode())
        return told

    def close(self) -> None:
        if self._heard is not None:
            self._heard.close()
        self._client.close()


def _line(name: str) -> Channel:
    return _Postgres() if name == "postgres" else _Redis()


# Telling


class Publisher(BackgroundThread):
    """Sends messages to other processes; runs while there are any."""

    name = "agentic-publisher"

    def __init__(self) -> None:
        super().__init__()
        self._ids: dict[str, None] = {}
        self._is_away = False

    def add(self, run_id: str) -> None:
        """Send a run's id soon."""
        with self._condition:
            self._ids[run_id] = None
            self.start()

    def _run(self) -> None:
        line: Channel | None = None
        while ids := self._take():
            name = transport()
            try:
                line = line or _line(name)
                for text in _messages(ids):
                    line.send(text)
                self._is_away = False
            except Exception as error:  # noqa: BLE001 - each driver has its own; readers look by themselves
                self._complain(error)
                _closed(line)
                line = None
                time.sleep(COALESCE_SECONDS)
            else:
                time.sleep(COALESCE_SECONDS)
        _closed(line)

    def _take(self) -> list[str]:
        """Wait for ids and return them; none ends the thread."""
        with self._condition:
            self._condition.wait_for(lambda: self._ids or self._is_stopped, _IDLE_SECONDS)
            ids, self._ids = list(self._ids), {}
            return ids

    def _complain(self, error: Exception) -> None:
        if not self._is_away:
            logger.warning("Cannot tell other processes of news, they will look: %r", error)
        self._is_away = True


def _messages(ids: list[str]) -> Iterable[str]:
    return [",".join(ids[at : at + _MOST_IDS]) for at in range(0, len(ids), _MOST_IDS)]


def _closed(line: Channel | None) -> None:
    if line is not None:
        with suppress(Exception):
            line.close()


def publish(run_id: Any) -> None:
    """Say that a run has something new; to be called after the commit, and never waits."""
    if transport() != "poll":
        process.get(Publisher).add(str(run_id))


# Hearing


class Subscriber:
    """A thread that hears what is told, and calls ``heard`` with the ids."""

    def __init__(self, heard: Callable[[set[str]], None]) -> None:
        self.is_healthy = False
        """Whether what is told arrives now; tested at each connection."""
        self._heard = heard
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="agentic-listen", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._stopped.set()
        self._thread.join()

    def _run(self) -> None:
        pause = 0.5
        while not self._stopped.is_set():
            line: Channel | None = None
            try:
                line = _line(transport())
                self._test(line)
                pause = 0.5
                self._hear(line)
            except Exception as error:  # noqa: BLE001 - each driver has its own; readers look by themselves
                if self.is_healthy or pause == 0.5:
                    logger.warning("Nothing is heard from other processes, polling: %r", error)
                self.is_healthy = False
                pause = min(pause * 2, _LONGEST_PAUSE)
            finally:
                _closed(line)
            self._stopped.wait(pause)
        self.is_healthy = False

    def _test(self, line: Channel) -> None:
        """Hear a word of our own, told on another connection: a pooler may swallow it."""
        word = f"test-{uuid.uuid4().hex}"
        line.listen()
        other = _line(transport())
        try:
            other.send(word)
        finally:
            other.close()
        end = time.monotonic() + _TEST_SECONDS
        while time.monotonic() < end and not self._stopped.is_set():
            if word in line.wait(0.2):
                self.is_healthy = True
                return
        raise TimeoutError("A word told on one connection is not heard on another.")

    def _hear(self, line: Channel) -> None:
        while not self._stopped.is_set():
            told = line.wait(0.5)
            if told:
                self._heard({each for text in told for each in text.split(",")})
