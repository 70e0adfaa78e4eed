"""Connections over which processes send each other short strings: PostgreSQL or Redis.

``AGENTIC_DJANGO_WAKEUP`` chooses between them. Both send all strings over one channel, ``CHANNEL``.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any, Protocol

from django.db import connections

from agentic_django.conf import settings
from agentic_django.exceptions import BadSetting

__all__ = ["CHANNEL", "Channel", "open_channel", "transport"]

CHANNEL = "agentic_django"

_CONNECT_SECONDS = 3.0
_HAS_PSYCOPG = find_spec("psycopg") is not None  # psycopg2 cannot wait for notifications.


def transport() -> str:
    """Return how processes wake each other: "postgres", "redis" or "poll" (not at all)."""
    if settings.WAKEUP != "auto":
        return settings.WAKEUP
    if settings.REDIS_URL:
        return "redis"
    is_postgres = connections[settings.DATABASE].vendor == "postgresql"
    return "postgres" if is_postgres and _HAS_PSYCOPG else "poll"


class Channel(Protocol):
    """A connection that sends strings to all listening processes, or receives them."""

    def send(self, text: str) -> None:
        """Send a string of at most 8,000 bytes."""

    def listen(self) -> None:
        """Receive strings from now on."""

    def wait(self, seconds: float) -> list[str]:
        """Wait for a string, and return all received strings. Return [] if none arrives in time."""

    def close(self) -> None:
        """Close the connection."""


def open_channel() -> Channel:
    """Connect with the configured transport, which must not be "poll"."""
    return RedisChannel() if transport() == "redis" else PostgresChannel()


class PostgresChannel:
    """LISTEN and NOTIFY, on a connection that Django does not manage."""

    def __init__(self) -> None:
        import psycopg  # noqa: PLC0415 - an extra

        wrapper = connections[settings.DATABASE]
        if wrapper.vendor != "postgresql":
            raise BadSetting(
                f"AGENTIC_DJANGO_WAKEUP is 'postgres', but the database {settings.DATABASE!r} "
                f"uses {wrapper.vendor}. Set AGENTIC_DJANGO_WAKEUP to 'auto'."
            )
        params = wrapper.get_connection_params()
        params.pop("pool", None)
        self._connection: Any = psycopg.connect(**{**params, "autocommit": True})

    def send(self, text: str) -> None:
        """See ``Channel``."""
        self._connection.execute("SELECT pg_notify(%s, %s)", (CHANNEL, text))

    def listen(self) -> None:
        """See ``Channel``."""
        self._connection.execute(f"LISTEN {CHANNEL}")

    def wait(self, seconds: float) -> list[str]:
        """See ``Channel``."""
        notifications = self._connection.notifies(timeout=seconds, stop_after=1)
        return [notification.payload for notification in notifications]

    def close(self) -> None:
        """See ``Channel``."""
        self._connection.close()


class RedisChannel:
    """PUBLISH and SUBSCRIBE, on a Redis-compatible server."""

    def __init__(self) -> None:
        import redis  # noqa: PLC0415 - an extra

        if not settings.REDIS_URL:
            raise BadSetting(
                "AGENTIC_DJANGO_WAKEUP is 'redis', but AGENTIC_DJANGO_REDIS_URL is not set. "
                "Set it, for example to 'redis://127.0.0.1:6379/0'."
            )
        self._client = redis.Redis.from_url(
            settings.REDIS_URL, socket_connect_timeout=_CONNECT_SECONDS, health_check_interval=10
        )
        self._client.ping()
        self._received: Any = None

    def send(self, text: str) -> None:
        """See ``Channel``."""
        self._client.publish(CHANNEL, text)

    def listen(self) -> None:
        """See ``Channel``."""
        self._received = self._client.pubsub(  # type: ignore[no-untyped-call]
            ignore_subscribe_messages=True
        )
        self._received.subscribe(CHANNEL)

    def wait(self, seconds: float) -> list[str]:
        """See ``Channel``."""
        texts: list[str] = []
        while message := self._received.get_message(timeout=0 if texts else seconds):
            texts.append(message["data"].decode())
        return texts

    def close(self) -> None:
        """See ``Channel``."""
        if self._received is not None:
            self._received.close()
        self._client.close()
