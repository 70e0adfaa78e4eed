"""What a run costs beside the bare SDK runner: time, and SQL statements; a poll's too.

``python -m benchmarks.plain_run [--runs 200] [--rounds 5]`` prints JSON. Runs are executed at
once in this process, on SQLite. The two are measured in turn, and medians of rounds are given.
Statements that only open or close a transaction or a savepoint do not count.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from benchmarks import site

_FRAMES = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    with site.database() as database:
        user = site.up(database)
        result = {kind: _measure(user, kind, n, asked) for kind, n in (("plain", 0), ("tools", 3))}
        print(json.dumps({**result, "http": _http(user)}, indent=2))


def _measure(user: Any, kind: str, tool_calls: int, asked: argparse.Namespace) -> dict[str, Any]:
    _ours(user, kind, 5)
    _bare(tool_calls, 5)
    pairs = [
        (_timed(_bare, tool_calls, asked.runs), _timed(_ours, user, kind, asked.runs))
        for _ in range(asked.rounds)
    ]
    bare, ours = ([pair[i] / asked.runs * 1000 for pair in pairs] for i in (0, 1))
    return {
        "bare_ms": round(statistics.median(bare), 3),
        "run_ms": round(statistics.median(ours), 3),
        "ratio": round(statistics.median(o / b for b, o in zip(bare, ours, strict=True)), 2),
        "statements": len(_statements(lambda: _submitted(user, kind))),
    }


def _timed(work: Callable[..., None], *args: Any) -> float:
    began = time.perf_counter()
    work(*args)
    return time.perf_counter() - began


def _bare(tool_calls: int, runs: int) -> None:
    from agents import Runner

    async def work() -> None:
        for _ in range(runs):
            result = Runner.run_streamed(site.agent(tool_calls), "Hello")
            async for _ in result.stream_events():
                pass

    asyncio.run(work())


def _ours(user: Any, kind: str, runs: int) -> None:
    for _ in range(runs):
        run = _submitted(user, kind)
    run.refresh_from_db(fields=["status"])
    assert run.status == "completed", run.status


def _submitted(user: Any, kind: str) -> Any:
    from agentic_django.services import submit_agent_run

    return submit_agent_run(owner=user, input_payload="Hello", agent_key=kind)


def _statements(work: Callable[[], Any]) -> list[str]:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    with CaptureQueriesContext(connection) as captured:
        work()
    texts = [query["sql"] for query in captured.captured_queries]
    return [text for text in texts if not text.startswith(_FRAMES)]


def _http(user: Any) -> dict[str, int]:
    from django.test import Client

    from agentic_django.models import AgentRun

    client = Client()
    client.force_login(user)
    run = AgentRun.objects.filter(agent_key="tools").latest("created_at")
    pages = {"poll": "fragment/", "events_page": "events/", "run_json": ""}
    asked = {name: f"/agents/runs/{run.pk}/{path}" for name, path in pages.items()}
    htmx = {"HX-Request": "true"}
    counts = {}
    for name, url in asked.items():
        headers = htmx if name == "poll" else {}
        counts[name] = len(_statements(partial(_got, client, url, headers)))
    return counts


def _got(client: Any, url: str, headers: dict[str, str]) -> None:
    response = client.get(url, headers=headers)
    assert response.status_code in (200, 204, 286), response.status_code


if __name__ == "__main__":
    main()
