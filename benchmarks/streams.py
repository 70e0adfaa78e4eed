"""Measures open streams: statements, memory, and the delay from a model's text to a reader.

``python -m benchmarks.streams [--streams 1000] [--active 100] [--seconds 20]`` prints JSON. One
ASGI process serves the streams, on PostgreSQL. The text is written as a worker writes it.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import socket
import statistics
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from benchmarks import command, site

_MOMENT = re.compile(rb"\d{10}\.\d{3}")


def main() -> None:
    """Measure and print the result."""
    parser = command.parser(__doc__, streams=1000, active=100, seconds=20.0, every=0.25)
    parser.add_argument("--wakeup", default="auto", choices=["auto", "poll"])
    parser.add_argument("--pages", action="store_true", help="read as pages do, with Markdown")
    options = parser.parse_args()
    with site.database("postgres") as database:
        user = site.set_up(database)
        few = argparse.Namespace(**{**vars(options), "streams": 10, "active": 10})
        result = {f"{each.streams}": _measured(database, user, each) for each in (few, options)}
    print(json.dumps(result, indent=2))


def _measured(database: dict[str, Any], user: Any, options: argparse.Namespace) -> dict[str, Any]:
    from agentic_django.models import AgentRun

    AgentRun.objects.all().delete()
    runs = [_running(user) for _ in range(options.streams)]
    with _served(database, options.wakeup) as url:
        return asyncio.run(_read(url, _cookie(user), runs, options))


def _running(user: Any) -> Any:
    from datetime import timedelta

    from django.db.models.functions import Now

    from agentic_django.models import AgentRun

    run = AgentRun.objects.create(owner=user, agent_key="plain", input_payload="Hello")
    lease = Now() + timedelta(hours=1)
    AgentRun.objects.filter(pk=run.pk).update(status="running", attempt=1, lease_ends_at=lease)
    run.refresh_from_db()
    return run


def _cookie(user: Any) -> str:
    from django.test import Client

    client = Client()
    client.force_login(user)
    return client.cookies["sessionid"].value


@contextmanager
def _served(database: dict[str, Any], wakeup: str) -> Iterator[str]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**os.environ, "BENCH_DATABASE": json.dumps(database), "BENCH_WAKEUP": wakeup}
    arguments = ["-m", "uvicorn", "benchmarks.stream_server:application", f"--port={port}"]
    arguments += ["--log-level=warning", "--timeout-graceful-shutdown=1", "--backlog=2048"]
    server = subprocess.Popen([sys.executable, *arguments], env=env)  # noqa: S603 - ours
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(url)
        yield url
    finally:
        server.terminate()
        server.wait()


def _wait_for(url: str) -> None:
    for _ in range(200):
        with suppress(OSError):
            _facts(url)
            return
        time.sleep(0.1)
    raise TimeoutError(url)


def _facts(url: str) -> dict[str, int]:
    with urllib.request.urlopen(f"{url}/facts") as response:  # noqa: S310 - ours
        facts: dict[str, int] = json.load(response)
        return facts


async def _read(url: str, cookie: str, runs: list[Any], options: Any) -> dict[str, Any]:
    lags: list[float] = []
    tasks = [await _open_stream(url, cookie, runs[0], options.pages, lags)]
    await asyncio.sleep(1)  # Leave out what the process loads once.
    before = await asyncio.to_thread(_facts, url)
    for start in range(1, len(runs), 20):
        opened = (
            _open_stream(url, cookie, run, options.pages, lags) for run in runs[start : start + 20]
        )
        tasks += await asyncio.gather(*opened)
    await asyncio.sleep(3)
    opened_facts = await asyncio.to_thread(_facts, url)
    await asyncio.sleep(options.seconds)
    idle = await asyncio.to_thread(_facts, url)
    stop = threading.Event()
    writer = threading.Thread(target=_write, args=(runs[: options.active], options.every, stop))
    writer.start()
    await asyncio.sleep(3)
    lags.clear()
    begun = await asyncio.to_thread(_facts, url)
    await asyncio.sleep(options.seconds)
    ended = await asyncio.to_thread(_facts, url)
    sorted_lags = sorted(lags)
    stop.set()
    await asyncio.to_thread(writer.join)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "active": options.active,
        "statements_per_second_idle": _rate(opened_facts, idle, options.seconds),
        "statements_per_second_active": _rate(begun, ended, options.seconds),
        "kb_per_stream": round(
            (opened_facts["memory_kb"] - before["memory_kb"]) / (len(runs) - 1), 1
        ),
        "threads": opened_facts["threads"],
        "messages": len(sorted_lags),
        "lag_ms_median": round(statistics.median(sorted_lags) * 1000),
        "lag_ms_p95": round(sorted_lags[int(len(sorted_lags) * 0.95)] * 1000),
    }


def _rate(before: dict[str, int], after: dict[str, int], seconds: float) -> float:
    return round((after["statements"] - before["statements"]) / seconds, 1)


async def _open_stream(url: str, cookie: str, run: Any, pages: bool, lags: list[float]) -> Any:
    """Open a stream and return the task that reads it."""
    host, port = url.removeprefix("http://").split(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    path = (
        f"/agents/stream/?run={run.pk}" if pages else f"/agents/runs/{run.pk}/stream/?format=json"
    )
    head = f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\nCookie: sessionid={cookie}\r\n\r\n"
    writer.write(head.encode())
    status = await reader.readline()
    assert b" 200 " in status, status
    while b"retry:" not in await reader.readline():
        pass
    return asyncio.create_task(_read_lags(reader, writer, lags))


async def _read_lags(reader: Any, writer: Any, lags: list[float]) -> None:
    try:
        while line := await reader.readline():
            if found := _MOMENT.findall(line):  # A page receives the whole block again.
                lags.append(time.time() - float(found[-1 if b'"blocks"' in line else 0]))
    finally:
        writer.close()


def _write(runs: list[Any], every: float, stop: threading.Event) -> None:
    """Write the time as text of each run, again and again, as a worker does."""
    from agentic_django.engine.attempt import Attempt
    from agentic_django.engine.drafts import PartialMessage

    drafts = [PartialMessage(Attempt(run), "main:model:1") for run in runs]
    due = time.monotonic()
    while not stop.is_set():
        for draft in drafts:
            due += every / len(drafts)
            time.sleep(max(due - time.monotonic(), 0))
            draft.add(f"{time.time():.3f} ")
    for draft in drafts:
        draft.close()


if __name__ == "__main__":
    main()
