"""A conversation of very many items: reading it, adding to it, and a run in it.

``python -m benchmarks.history [--items 10000] [--database sqlite|postgres]`` prints JSON: the
time to read and decode the rows by themselves, and by ``get_items()``; to append two items to an
empty conversation, and to this one; and of a run in it, whole and with the last 100 items alone.
Medians of rounds; what is compared is measured in turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks import site


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=10_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="postgres")
    asked = parser.parse_args()
    with site.database(asked.database) as database:
        user = site.up(database)
        print(json.dumps(_measured(user, asked), indent=2))


def _item(n: int) -> dict[str, Any]:
    role = "assistant" if n % 2 else "user"
    return {"role": role, "content": f"Message {n}: " + "a few words of a person or agent. " * 6}


def _measured(user: Any, asked: argparse.Namespace) -> dict[str, Any]:
    from agentic_django import sessions
    from agentic_django.engine import session_items

    long, empty = (sessions.get_session(key, user) for key in ("long", "empty"))
    for start in range(0, asked.items, 1000):
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
    taken: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(asked.rounds + 1):
        for name, one in work.items():
            began = time.perf_counter()
            one()
            taken[name].append((time.perf_counter() - began) * 1000)
    found = {name: round(statistics.median(times[1:]), 2) for name, times in taken.items()}
    found["get_items_ratio"] = round(found["get_items_ms"] / found["rows_ms"], 2)
    found["append_ratio"] = round(found["append_to_long_ms"] / found["append_to_empty_ms"], 2)
    return {"items": asked.items, "database": asked.database, **found}


def _rows(session: Any) -> list[Any]:
    """Read and decode the rows, with no more than the driver and a JSON decoder."""
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
