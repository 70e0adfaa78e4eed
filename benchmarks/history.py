"""Measures a long conversation: reading it, appending to it, and a run in it.

``python -m benchmarks.history [--items 10000] [--database sqlite|postgres]`` prints medians as
JSON. It reads the items as plain rows and with ``get_items()``, appends two items to an empty
conversation and to the long one, and executes a run with the whole history and with its last 100
items. The cases alternate in each round.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks import command, site


def main() -> None:
    """Measure and print the result."""
    options = command.parser(__doc__, items=10_000, rounds=5, database="postgres").parse_args()
    with site.database(options.database) as database:
        user = site.set_up(database)
        print(json.dumps(_measured(user, options), indent=2))


def _item(n: int) -> dict[str, Any]:
    role = "assistant" if n % 2 else "user"
    return {"role": role, "content": f"Message {n}: " + "a few words of a person or agent. " * 6}


def _measured(user: Any, options: argparse.Namespace) -> dict[str, Any]:
    from agentic_django import sessions
    from agentic_django.engine import session_items

    long, empty = (sessions.get_session(key, user) for key in ("long", "empty"))
    for start in range(0, options.items, 1000):
        session_items.append_items(long.session, [_item(n) for n in range(start, start + 1000)])
    pair = [_item(0), _item(1)]
    work: dict[str, Callable[[], Any]] = {
        "rows_ms": lambda: _rows(long.session),
        "get_items_ms": lambda: asyncio.run(long.get_items()),
        "append_to_empty_ms": lambda: session_items.append_items(empty.session, pair),
        "append_to_long_ms": lambda: session_items.append_items(long.session, pair),
        "run_ms": lambda: _run(user, {}),
        "run_with_limit_ms": lambda: _run(user, {"session_settings": {"limit": 100}}),
    }
    milliseconds: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(options.rounds + 1):
        for name, perform in work.items():
            began = time.perf_counter()
            perform()
            milliseconds[name].append((time.perf_counter() - began) * 1000)
    found = {name: round(statistics.median(times[1:]), 2) for name, times in milliseconds.items()}
    found["get_items_ratio"] = round(found["get_items_ms"] / found["rows_ms"], 2)
    found["append_ratio"] = round(found["append_to_long_ms"] / found["append_to_empty_ms"], 2)
    return {"items": options.items, "database": options.database, **found}


def _rows(session: Any) -> list[Any]:
    """Read and decode the rows with only the driver and a JSON decoder."""
    from django.db import connection

    key = session.pk if connection.vendor == "postgresql" else session.pk.hex
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT payload FROM agentic_django_agentsessionitem WHERE session_id = %s "
            "ORDER BY sequence",
            [key],
        )
        return [json.loads(payload) for (payload,) in cursor.fetchall()]


def _run(user: Any, options: dict[str, Any]) -> None:
    from django.test import override_settings

    from agentic_django.services import submit_agent_run

    with override_settings(AGENTIC_DJANGO_DEFAULT_RUN_OPTIONS=options):
        run = submit_agent_run(owner=user, input_payload="Hello", session_key="long")
    run.refresh_from_db()
    assert run.status == "completed", run.error_detail


if __name__ == "__main__":
    main()
