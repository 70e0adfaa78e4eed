"""Measures the overhead of a run over the SDK's runner: time and SQL statements.

``python -m benchmarks.plain_run [--runs 200] [--rounds 5]`` prints medians as JSON, and the
statements of a poll and other requests. Runs execute immediately in this process, on SQLite. The
two runners alternate in each round. Statements that only open or close a transaction or a savepoint
are not counted.
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

from benchmarks import command, site


def main() -> None:
    """Measure and print the result."""
    options = command.parser(__doc__, runs=200, rounds=5).parse_args()
    with site.database() as database:
        user = site.set_up(database)
        result = {
            kind: _measure(user, kind, n, options) for kind, n in (("plain", 0), ("tools", 3))
        }
        print(json.dumps({**result, "http": _request_statements(user)}, indent=2))


def _measure(user: Any, kind: str, tool_calls: int, options: argparse.Namespace) -> dict[str, Any]:
    _run_app(user, kind, 5)
    _run_sdk(tool_calls, 5)
    pairs = [
        (_timed(_run_sdk, tool_calls, options.runs), _timed(_run_app, user, kind, options.runs))
        for _ in range(options.rounds)
    ]
    bare, ours = ([pair[i] / options.runs * 1000 for pair in pairs] for i in (0, 1))
    return {
        "bare_ms": round(statistics.median(bare), 3),
        "run_ms": round(statistics.median(ours), 3),
        "ratio": round(statistics.median(o / b for b, o in zip(bare, ours, strict=True)), 2),
        "statements": len(_statements(lambda: site.submit(user, kind))),
    }


def _timed(work: Callable[..., None], *args: Any) -> float:
    began = time.perf_counter()
    work(*args)
    return time.perf_counter() - began


def _run_sdk(tool_calls: int, runs: int) -> None:
    from agents import Runner

    async def work() -> None:
        for _ in range(runs):
            result = Runner.run_streamed(site.agent(tool_calls), "Hello")
            async for _ in result.stream_events():
                pass

    asyncio.run(work())


def _run_app(user: Any, kind: str, runs: int) -> None:
    run = site.submit(user, kind, runs)
    run.refresh_from_db(fields=["status"])
    assert run.status == "completed", run.status


def _statements(work: Callable[[], Any]) -> list[str]:
    from django.db import connection
    from django.test.utils import CaptureQueriesContext

    with CaptureQueriesContext(connection) as captured:
        work()
    texts = [query["sql"] for query in captured.captured_queries]
    return [text for text in texts if not text.startswith(site.TRANSACTION_STATEMENTS)]


def _request_statements(user: Any) -> dict[str, int]:
    from django.test import Client

    from agentic_django.models import AgentRun

    client = Client()
    client.force_login(user)
    run = AgentRun.objects.filter(agent_key="tools").latest("created_at")
    pages = {"poll": "fragment/", "events_page": "events/", "run_json": ""}
    urls = {name: f"/agents/runs/{run.pk}/{path}" for name, path in pages.items()}
    htmx = {"HX-Request": "true"}
    counts = {}
    for name, url in urls.items():
        headers = htmx if name == "poll" else {}
        counts[name] = len(_statements(partial(_get, client, url, headers)))
    return counts


def _get(client: Any, url: str, headers: dict[str, str]) -> None:
    response = client.get(url, headers=headers)
    assert response.status_code in (200, 204, 286), response.status_code


if __name__ == "__main__":
    main()
