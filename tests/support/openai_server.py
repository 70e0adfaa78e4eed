"""A local HTTP server that speaks OpenAI's Responses API, streamed or not.

A test says what it answers, in order (``enqueue``) or from the request (``answer_with``), and
reads what it was asked (``requests``). The wire format follows the published event sequence.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any, ClassVar, Self

__all__ = ["Call", "Cut", "Failure", "Hang", "OpenAIServer", "Reply", "StreamError"]


@dataclass(frozen=True)
class Call:
    """The model calls a function tool."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    call_id: str = ""


@dataclass(frozen=True, init=False)
class Reply:
    """The model answers with texts (str) and tool calls.

    ``delay`` is the pause before each delta of a stream, or before an unstreamed answer.
    ``usage`` is the number of tokens of input and output, or the value as it is sent. ``fields``
    are those of the response that differ: ``status="incomplete"`` ends the answer as that.
    """

    items: tuple[str | Call, ...]
    delay: float
    usage: Any
    fields: dict[str, Any]

    def __init__(
        self, *items: str | Call, delay: float = 0.0, usage: Any = (10, 5), **fields: Any
    ) -> None:
        object.__setattr__(self, "items", items)
        object.__setattr__(self, "delay", delay)
        object.__setattr__(self, "usage", usage)
        object.__setattr__(self, "fields", fields)

    @property
    def status(self) -> str:
        """How the answer ends."""
        return str(self.fields.get("status", "completed"))


@dataclass(frozen=True)
class Failure:
    """The provider refuses; ``retry_after`` (seconds) becomes a header."""

    status: int = 500
    message: str = "The server had an error."
    code: str = "server_error"
    retry_after: float | None = None


@dataclass(frozen=True)
class Hang:
    """The provider never answers; with ``events``, it first streams that many of the reply."""

    reply: Reply = field(default_factory=lambda: Reply("never finished"))
    events: int = 0


@dataclass(frozen=True)
class Cut:
    """The connection breaks after some events of the stream."""

    reply: Reply = field(default_factory=lambda: Reply("never finished"))
    events: int = 5


@dataclass(frozen=True)
class StreamError:
    """The provider reports an error after some events of a stream that began with status 200."""

    data: dict[str, Any]
    reply: Reply = field(default_factory=lambda: Reply("never finished"))
    events: int = 5
    event: str = "error"


type Answer = str | Call | Reply | Failure | Hang | Cut | StreamError
type Event = dict[str, Any]


class _Message:
    """One response object of the API, and the events that build it."""

    numbers: ClassVar[Iterator[int]] = count(1)

    def __init__(self, reply: Reply, body: dict[str, Any]) -> None:
        self.reply = reply
        self.body = body
        self.number = next(self.numbers)

    def response(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        done = status != "in_progress"
        response = {
            "id": f"resp_{self.number}",
            "object": "response",
            "created_at": int(time.time()),
            "status": status,
            "error": None,
            "incomplete_details": None,
            "instructions": self.body.get("instructions"),
            "metadata": {},
            "model": self.body.get("model", "test"),
            "output": output,
            "parallel_tool_calls": True,
            "temperature": 1.0,
            "tool_choice": "auto",
            "tools": self.body.get("tools", []),
            "top_p": 1.0,
            "usage": self._usage() if done else None,
        }
        return response | self.reply.fields if done else response

    def _usage(self) -> Any:
        if not isinstance(self.reply.usage, tuple):
            return self.reply.usage
        asked, answered = self.reply.usage
        return {
            "input_tokens": asked,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": answered,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": asked + answered,
        }

    def output(self) -> list[dict[str, Any]]:
        return [self._item(index, item, "completed") for index, item in enumerate(self.reply.items)]

    def _item(self, index: int, item: str | Call, status: str) -> dict[str, Any]:
        done = status == "completed"
        if isinstance(item, Call):
            return {
                "id": f"fc_{self.number}_{index}",
                "type": "function_call",
                "status": status,
                "call_id": item.call_id or f"call_{self.number}_{index}",
                "name": item.name,
                "arguments": json.dumps(item.arguments) if done else "",
            }
        return {
            "id": f"msg_{self.number}_{index}",
            "type": "message",
            "status": status,
            "role": "assistant",
            "content": [_part(item)] if done else [],
        }

    def events(self) -> Iterator[Event]:
        for sequence, event in enumerate(self._events()):
            yield {**event, "sequence_number": sequence}

    def _events(self) -> Iterator[Event]:
        begun = self.response("in_progress", [])
        yield {"type": "response.created", "response": begun}
        yield {"type": "response.in_progress", "response": begun}
        for index, item in enumerate(self.reply.items):
            yield from self._item_events(index, item)
        status = self.reply.status
        yield {"type": f"response.{status}", "response": self.response(status, self.output())}

    def _item_events(self, index: int, item: str | Call) -> Iterator[Event]:
        begun = self._item(index, item, "in_progress")
        done = self._item(index, item, "completed")
        place = {"item_id": done["id"], "output_index": index}
        added = "response.output_item.added"
        yield {"type": added, "output_index": index, "item": begun}
        if isinstance(item, Call):
            yield from _argument_events(place, done)
        else:
            yield from _text_events({**place, "content_index": 0}, item)
        yield {"type": "response.output_item.done", "output_index": index, "item": done}


def _part(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def _argument_events(place: Event, call: dict[str, Any]) -> Iterator[Event]:
    kind = "response.function_call_arguments"
    for piece in _pieces(call["arguments"]):
        yield {"type": f"{kind}.delta", **place, "delta": piece}
    done = {"arguments": call["arguments"], "name": call["name"]}
    yield {"type": f"{kind}.done", **place, **done}


def _text_events(place: Event, text: str) -> Iterator[Event]:
    yield {"type": "response.content_part.added", **place, "part": _part("")}
    for piece in _pieces(text):
        delta = {"delta": piece, "logprobs": []}
        yield {"type": "response.output_text.delta", **place, **delta}
    yield {"type": "response.output_text.done", **place, "text": text, "logprobs": []}
    yield {"type": "response.content_part.done", **place, "part": _part(text)}


def _pieces(text: str, size: int = 8) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


class OpenAIServer:
    """The server; ``with OpenAIServer() as server`` runs it on a free loopback port."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.unexpected: list[str] = []
        self.closing = threading.Event()
        self._disconnected = threading.Semaphore(0)
        self._answers: deque[Answer] = deque()
        self._respond: Callable[[dict[str, Any]], Answer] | None = None
        handler = type("Handler", (_Handler,), {"owner": self})
        self._http = _Server(("127.0.0.1", 0), handler)

    @property
    def base_url(self) -> str:
        """What ``AsyncOpenAI(base_url=…)`` and ``OPENAI_BASE_URL`` take."""
        return f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    def enqueue(self, *answers: Answer) -> None:
        """Add answers, given in this order, one to a request."""
        self._answers.extend(answers)

    def answer_with(self, respond: Callable[[dict[str, Any]], Answer]) -> None:
        """Make each answer from the request's body, whenever nothing is enqueued."""
        self._respond = respond

    def reset(self) -> None:
        """Forget the script and what was asked."""
        self._answers.clear()
        self._respond = None
        self.requests.clear()
        self.headers.clear()
        self.unexpected.clear()
        self._disconnected = threading.Semaphore(0)

    @property
    def remaining(self) -> int:
        """How many enqueued answers nobody asked for."""
        return len(self._answers)

    def wait_for_disconnect(self, timeout: float = 10.0) -> bool:
        """Wait until a client goes away before its answer is complete; False if none does."""
        return self._disconnected.acquire(timeout=timeout)

    def client_left(self) -> None:
        """Note that a client went away."""
        self._disconnected.release()

    def next_answer(self, path: str, body: dict[str, Any]) -> Answer:
        """Return the answer to a request, which is recorded."""
        self.requests.append(body)
        if path != "/v1/responses":
            return self._surprise(f"This server has no {path}.")
        try:
            return self._answers.popleft()
        except IndexError:
            if self._respond is None:
                return self._surprise("The test enqueued no answer for this request.")
            return self._respond(body)

    def _surprise(self, message: str) -> Failure:
        self.unexpected.append(message)
        return Failure(400, message, "invalid_request_error")

    def __enter__(self) -> Self:
        # A short poll, so that closing takes no noticeable time.
        serve = {"poll_interval": 0.02}
        threading.Thread(target=self._http.serve_forever, kwargs=serve, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Stay quiet about a client that went away between two requests."""


class _GoneError(Exception):
    """The client went away, or the server closes."""


class _Handler(BaseHTTPRequestHandler):
    owner: ClassVar[OpenAIServer]
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""

    def do_POST(self) -> None:
        raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = json.loads(raw or b"{}")
        self.owner.headers.append({name.lower(): value for name, value in self.headers.items()})
        answer = self.owner.next_answer(self.path, body)
        try:
            self._answer(answer, body)
        except (_GoneError, ConnectionError):
            self.close_connection = True
            if not self.owner.closing.is_set():
                self.owner.client_left()

    def _answer(self, answer: Answer, body: dict[str, Any]) -> None:
        match answer:
            case Failure():
                self._fail(answer)
            case Hang(reply, events):
                self._begin_stream(reply, body, events)
                self._pause(3600)
            case Cut(reply, events):
                self._begin_stream(reply, body, events)
                self.close_connection = True
                self.connection.shutdown(socket.SHUT_RDWR)
            case StreamError():
                self._begin_stream(answer.reply, body, answer.events)
                self._send_event(answer.data, answer.event)
                self.wfile.write(b"0\r\n\r\n")
            case Reply():
                self._reply(answer, body)
            case _:
                self._reply(Reply(answer), body)

    def _fail(self, failure: Failure) -> None:
        error = {"message": failure.message, "type": failure.code, "code": failure.code}
        extra = {}
        if failure.retry_after is not None:
            extra["Retry-After"] = f"{failure.retry_after:g}"
        self._send_json(failure.status, {"error": {**error, "param": None}}, **extra)

    def _reply(self, reply: Reply, body: dict[str, Any]) -> None:
        if body.get("stream"):
            self._begin_stream(reply, body, None)
            self.wfile.write(b"0\r\n\r\n")
            return
        self._pause(reply.delay)
        message = _Message(reply, body)
        self._send_json(200, message.response(reply.status, message.output()))

    def _begin_stream(self, reply: Reply, body: dict[str, Any], limit: int | None) -> None:
        if limit == 0:
            return
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream; charset=utf-8")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number, event in enumerate(_Message(reply, body).events(), start=1):
            if event["type"].endswith(".delta"):
                self._pause(reply.delay)
            self._send_event(event)
            if number == limit:
                return

    def _send_event(self, event: Event, name: str = "") -> None:
        data = f"event: {name or event['type']}\ndata: {json.dumps(event)}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
        self.wfile.flush()

    def _send_json(self, status: int, body: dict[str, Any], **extra: str) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(data)), **extra}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def _pause(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            readable, _, _ = select.select([self.connection], [], [], min(left, 0.05))
            if self.owner.closing.is_set():
                raise _GoneError
            if readable and not self.connection.recv(1, socket.MSG_PEEK):
                raise _GoneError
