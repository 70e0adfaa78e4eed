"""Publishes to all processes that a run has changed, or that a run was enqueued.

A worker publishes after its commit, and a web process subscribes::

    publish(Topic.RUN_CHANGED, run.pk)

    subscriber = Subscriber(Topic.RUN_CHANGED, read_runs)
    subscriber.start()  # Calls read_runs({"0199…"}) in its own thread.

A message names a row and has no content. The receiver reads the database. Delivery is not
guaranteed, so a receiver must also poll. It may poll less often while ``is_healthy`` is true.

One thread per process publishes, on its own connection and at most once every ``COALESCE_SECONDS``.
A NOTIFY within the transactions of the journal would serialize their commits.
"""

from __future__ import annotations

import atexit
import time
import uuid
from collections.abc import Callable
from contextlib import closing, suppress
from enum import StrEnum
from itertools import batched
from typing import Any

from agentic_django.concurrency.background_thread import BackgroundThread
from agentic_django.concurrency.process_state import process
from agentic_django.concurrency.pubsub_transports import Channel, open_channel, transport
from agentic_django.signals import logger

__all__ = ["COALESCE_SECONDS", "Publisher", "Subscriber", "Topic", "publish"]

COALESCE_SECONDS = 0.02
_MAX_PER_TEXT = 150
"""The number of messages sent together. PostgreSQL limits a payload to 8,000 bytes."""

_IDLE_SECONDS = 2.0
"""An idle publisher closes its connection after this time.

PostgreSQL waits 5 seconds for other connections before it refuses to drop a database, as Django's
test runner does at its end.
"""

_SELF_TEST_SECONDS = 3.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 10.0
_EXIT_SECONDS = 1.0


class Topic(StrEnum):
    """The kinds of messages."""

    RUN_CHANGED = "run"
    """The value is the run's id. The hub of a web process subscribes."""

    RUN_ENQUEUED = "queue"
    """The value is the queue's name. Workers that claim from the database subscribe."""

    SELF_TEST = "test"
    """The value is random."""


def publish(topic: Topic, value: Any) -> None:
    """Send a message to all processes soon. Call it after the commit. It never waits or fails."""
    if transport() != "poll":
        process.get(Publisher).add(f"{topic}:{value}")


class Publisher(BackgroundThread):
    """Sends the messages of this process. Runs while it has messages."""

    name = "agentic-publisher"

    def __init__(self) -> None:
        super().__init__()
        self._messages: dict[str, None] = {}
        self._is_sending = False
        self._has_failed = False

    def add(self, message: str) -> None:
        """Send a message soon. A message that is already waiting is sent only once."""
        with self._condition:
            self._messages[message] = None
            self.start()

    def flush(self, timeout: float) -> None:
        """Wait until all messages are sent, at most ``timeout`` seconds."""
        with self._condition:
            self._condition.wait_for(
                lambda: not (self._messages or self._is_sending) or not self.is_running, timeout
            )

    def _run(self) -> None:
        channel: Channel | None = None
        while messages := self._next_messages():
            try:
                channel = channel or open_channel()
                for part in batched(messages, _MAX_PER_TEXT, strict=False):
                    channel.send("\n".join(part))
                self._has_failed = False
            except Exception as error:  # noqa: BLE001 - each driver has its own; subscribers poll
                if not self._has_failed:
                    logger.warning("Cannot notify other processes. They poll instead: %r", error)
                self._has_failed = True
                _close(channel)
                channel = None
            self._pause(COALESCE_SECONDS)
        _close(channel)

    def _next_messages(self) -> list[str]:
        """Wait for messages, and return them. Return none if the thread must end."""
        with self._condition:
            self._is_sending = False
            self._condition.notify_all()
            self._condition.wait_for(lambda: self._messages or self._is_stopped, _IDLE_SECONDS)
            messages, self._messages = list(self._messages), {}
            self._is_sending = bool(messages)
            return messages


@atexit.register
def _flush_at_exit() -> None:
    """Let a process that enqueues a run and exits wake a worker."""
    process.get(Publisher).flush(_EXIT_SECONDS)


class Subscriber(BackgroundThread):
    """Calls ``receive`` with the values of a topic as they arrive, in its own thread.

    ``receive`` gets an empty set after each connection, because messages sent before it are lost.
    """

    name = "agentic-subscriber"

    def __init__(self, topic: Topic, receive: Callable[[set[str]], None]) -> None:
        super().__init__()
        self.is_healthy = False
        """Whether messages arrive now. Each connection is tested."""
        self._prefix = f"{topic}:"
        self._receive = receive

    def _run(self) -> None:
        pause = _FIRST_PAUSE
        while not self._is_stopped:
            try:
                with closing(open_channel()) as channel:
                    self._test(channel)
                    pause = _FIRST_PAUSE
                    while not self._is_stopped:
                        messages = {each for text in channel.wait(0.5) for each in text.split("\n")}
                        mine = [each for each in messages if each.startswith(self._prefix)]
                        if mine:
                            self._receive({each.removeprefix(self._prefix) for each in mine})
            except Exception as error:  # noqa: BLE001 - each driver has its own; subscribers poll
                if self.is_healthy or pause == _FIRST_PAUSE:
                    logger.warning("Receiving no messages from other processes. Polling: %r", error)
                pause = min(pause * 2, _LONGEST_PAUSE)
            self.is_healthy = False
            self._pause(pause)

    def _test(self, channel: Channel) -> None:
        """Send a message on another connection and wait for it. A connection pooler may drop it."""
        text = f"{Topic.SELF_TEST}:{uuid.uuid4().hex}"
        channel.listen()
        with closing(open_channel()) as other:
            other.send(text)
        end = time.monotonic() + _SELF_TEST_SECONDS
        while time.monotonic() < end and not self._is_stopped:
            if text in channel.wait(0.2):
                self.is_healthy = True
                self._receive(set())
                return
        raise TimeoutError("A message sent on one connection does not arrive on another.")


def _close(channel: Channel | None) -> None:
    if channel is not None:
        with suppress(Exception):
            channel.close()
