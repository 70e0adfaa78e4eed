"""Measures the page of a conversation: time, size and SQL statements, by number of messages.

``python -m benchmarks.pages [--messages 200] [--database sqlite|postgres]`` prints medians as JSON.
The first request renders the Markdown of the answers, later ones find it in the cache. Each answer
has a table and code.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

from benchmarks import command, site

ANSWER = """Your order qualifies for a **full refund**, number {number}:

| Item | Paid |
|---|---|
| Blue mug × 2 | 24.00 |
| Teapot | 24.00 |

```python
refund(order={number})
```
"""


def main() -> None:
    """Measure and print the result."""
    options = command.parser(__doc__, messages=200, rounds=9, database="sqlite").parse_args()
    with site.database(options.database) as database:
        user = site.set_up(database)
        _create_conversation(user, options.messages // 2)
        print(json.dumps(_measured(user, options), indent=2))


def _create_conversation(user: Any, turns: int) -> None:
    from agentic_django.models import AgentRun, AgentSession

    session = AgentSession.objects.create(owner=user, session_key="talk", agent_key="plain")
    for number in range(turns):
        question = f"Question {number}: where is my order?"
        run = AgentRun.objects.create(
            owner=user,
            session=session,
            agent_key="plain",
            input_payload=question,
        )
        answer = ANSWER.format(number=number)
        AgentRun.objects.filter(pk=run.pk).update(status="completed", final_output=answer)


def _measured(user: Any, options: argparse.Namespace) -> dict[str, Any]:
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext

    from agentic_django.presentation import markdown

    client = Client()
    client.force_login(user)

    def get() -> float:
        began = time.perf_counter()
        response = client.get("/agents/sessions/talk/", headers={"accept": "text/html"})
        assert response.status_code == 200, response.status_code
        found["kb"] = round(len(response.content) / 1024)
        return (time.perf_counter() - began) * 1000

    found: dict[str, Any] = {"messages": options.messages}
    get()  # Load what a process loads once.
    first = []
    for _ in range(options.rounds):
        markdown._rendered.clear()
        first.append(get())
    found["first_ms"] = round(statistics.median(first))
    found["next_ms"] = round(statistics.median(get() for _ in range(options.rounds)))
    with CaptureQueriesContext(connection) as queries:
        get()
    return {**found, "statements": len(queries)}


if __name__ == "__main__":
    main()
