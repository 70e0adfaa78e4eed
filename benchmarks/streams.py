"""What open streams cost: statements, memory, and the time from a model's word to a reader.

``python -m benchmarks.streams [--streams 1000] [--active 100] [--seconds 20]`` prints JSON. One
ASGI process serves the streams, on PostgreSQL; the words are written as a worker writes them.
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

from benchmarks import site

_MOMENT = re.compile(rb"\d{10}\.\d{3}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--active", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--every", type=float, default=0.25, help="seconds between a run's words")
    parser.add_argument("--wakeup", default="auto", choices=["auto", "poll"])
    parser.add_argument("--pages", action="store_true", help="as pages read, with Markdown")
    asked = parser.parse_args()
    with site.database("postgres") as database:
        user = site.up(database)
        few = argparse.Namespace(**{**vars(asked), "streams": 10, "active": 10})
        result = {f"{each.streams}": _measured(database, user, each) for each in (few, asked)}
    print(json.dumps(result, indent=2))


def _measured(database: dict[str, Any], user: Any, asked: argparse.Namespace) -> dict[str, Any]:
    from agentic_django.models import AgentRun

    AgentRun.objects.all().delete()
    runs = [_running(user) for _ in range(asked.streams)]
    with _served(database, asked.wakeup) as url:
        return asyncio.run(_read(url, _cookie(user), runs, asked))


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
    command = ["-m", "uvicorn", "benchmarks.stream_server:application", f"--port={port}"]
    command += ["--log-level=warning", "--timeout-graceful-shutdown=1", "--backlog=2048"]
    server = subprocess.Popen([sys.executable, *command], env=env)  # noqa: S603 - ours
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


async def _read(url: str, cookie: str, runs: list[Any], asked: Any) -> dict[str, Any]:
    lags: list[float] = []
    tasks = [await _one(url, cookie, runs[0], asked.pages, lags)]
    await asyncio.sleep(1)  # What is loaded once is not a stream's.
    before = await asyncio.to_thread(_facts, url)
    for start in range(1, len(runs), 20):
        opened = (_one(url, cookie, run, asked.pages, lags) for run in runs[start : start + 20])
        tasks += await asyncio.gather(*opened)
    await asyncio.sleep(3)
    opened_facts = await asyncio.to_thread(_facts, url)
    await asyncio.sleep(asked.seconds)
    idle = await asyncio.to_thread(_facts, url)
    stop = threading.Event()
    writer = threading.Thread(target=_write, args=(runs[: asked.active], asked.every, stop))
    writer.start()
    await asyncio.sleep(3)
    lags.clear()
    begun = await asyncio.to_thread(_facts, url)
    await asyncio.sleep(asked.seconds)
    ended = await asyncio.to_thread(_facts, url)
    told = sorted(lags)
    stop.set()
    await asyncio.to_thread(writer.join)
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return {
        "active": asked.active,
        "statements_per_second_idle": _rate(opened_facts, idle, asked.seconds),
        "statements_per_second_active": _rate(begun, ended, asked.seconds),
        "kb_per_stream": round(
            (opened_facts["memory_kb"] - before["memory_kb"]) / (len(runs) - 1), 1
        ),
        "threads": opened_facts["threads"],
        "told": len(told),
        "lag_ms_median": round(statistics.median(told) * 1000),
        "lag_ms_p95": round(told[int(len(told) * 0.95)] * 1000),
    }


def _rate(before: dict[str, int], after: dict[str, int], seconds: float) -> float:
    return round((after["statements"] - before["statements"]) / seconds, 1)


async def _one(url: str, cookie: str, run: Any, pages: bool, lags: list[float]) -> Any:
    """Open a stream; returns the task that reads it on."""
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
    return asyncio.create_task(_go_on(reader, writer, lags))


async def _go_on(reader: Any, writer: Any, lags: list[float]) -> None:
    try:
        while line := await reader.readline():
            if found := _MOMENT.findall(line):  # A page is given the whole block again.
                lags.append(time.time() - float(found[-1 if b'"blocks"' in line else 0]))
    finally:
        writer.close()


def _write(runs: list[Any], every: float, stop: threading.Event) -> None:
    """Let each of the runs say the time, again and again, as a worker's models would."""
    from agentic_django.engine.drafts import PartialMessage

    drafts = [PartialMessage(run, "main:model:1") for run in runs]
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
