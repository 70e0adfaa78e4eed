"""A reader of server-sent events, as a program on another machine would be one."""

from __future__ import annotations

import http.client
import json
import queue
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Self
from urllib.parse import urlsplit

from django.conf import settings
from django.test import Client

__all__ = ["Message", "Stream", "messages"]


@dataclass(frozen=True)
class Message:
    """One message of a stream."""

    name: str
    data: Any
    id: str = ""


def messages(text: str) -> list[Message]:
    """Return the messages in what a stream has sent."""
    return [found for block in text.split("\n\n") if (found := _message(block))]


def _message(block: str) -> Message | None:
    fields: dict[str, str] = {}
    for line in block.splitlines():
        name, _, value = line.partition(":")
        if name:
            fields[name] = value.removeprefix(" ")
    if "data" not in fields:
        return None
    return Message(fields.get("event", "message"), json.loads(fields["data"]), fields.get("id", ""))


@dataclass
class Stream:
    """An open stream; use it in ``with``. What arrives is read by a thread of its own."""

    url: str
    user: Any = None
    last: str = ""
    raw: str = ""
    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    arrived: list[Message] = field(default_factory=list)
    is_closed: bool = False
    _news: queue.SimpleQueue[Message | None] = field(default_factory=queue.SimpleQueue)

    def __enter__(self) -> Self:
        parts = urlsplit(self.url)
        self._connection = http.client.HTTPConnection(parts.netloc, timeout=30)
        self._connection.request("GET", f"{parts.path}?{parts.query}", headers=self._headers())
        self._socket = self._connection.sock  # The connection forgets it behind the headers.
        self._response = self._connection.getresponse()
        self.status = self._response.status
        self.headers = dict(self._response.getheaders())
        threading.Thread(target=self._read, daemon=True).start()
        return self

    def _headers(self) -> dict[str, str]:
        headers = {"Accept": "text/event-stream"}
        if self.last:
            headers["Last-Event-ID"] = self.last
        if self.user is not None:
            client = Client()
            client.force_login(self.user)
            name = settings.SESSION_COOKIE_NAME
            headers["Cookie"] = f"{name}={client.cookies[name].value}"
        return headers

    def _read(self) -> None:
        block = ""
        try:
            while line := self._response.readline().decode():
                self.raw += line
                block += line
                if line == "\n":
                    self._take(block)
                    block = ""
        except (OSError, ValueError, AttributeError, http.client.HTTPException):
            pass  # Closed, by one side or the other.
        self.is_closed = True
        self._news.put(None)

    def _take(self, block: str) -> None:
        message = _message(block)
        if message is not None:
            self.arrived.append(message)
            self._news.put(message)

    def __iter__(self) -> Iterator[Message]:
        """Yield messages as they arrive, until the stream ends."""
        while (message := self._news.get(timeout=30)) is not None:
            yield message

    def until(self, wanted: Callable[[Message], Any]) -> Message:
        """Return the first message from here on that is wanted."""
        for message in self:
            if wanted(message):
                return message
        raise AssertionError(f"The stream ended before that, after {self.arrived}.")

    def __exit__(self, *_: object) -> None:
        with suppress(OSError):  # It may be closed already.
            self._socket.shutdown(socket.SHUT_RDWR)  # Wakes the thread that reads.
        self._connection.close()
