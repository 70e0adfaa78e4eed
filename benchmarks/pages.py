"""What a conversation's page costs the server: time and statements, by the number of messages.

``python -m benchmarks.pages [--messages 200] [--database sqlite|postgres]`` prints JSON: the time
of the page as the first who comes gets it (its Markdown is rendered) and as the next ones do, its
size, and its statements. Answers have a table and code. Medians of rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

from benchmarks import site

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
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    asked = parser.parse_args()
    with site.database(asked.database) as database:
        user = site.up(database)
        _talk(user, asked.messages // 2)
        print(json.dumps(_measured(user, asked), indent=2))


def _talk(user: Any, turns: int) -> None:
    from agentic_django.models import AgentRun, AgentSession

    session = AgentSession.objects.create(owner=user, session_key="talk", agent_key="plain")
    for number in range(turns):
        given = f"Question {number}: where is my order?"
        run = AgentRun.objects.create(
            owner=user, session=session, agent_key="plain", input_payload=given
        )
        answer = ANSWER.format(number=number)
        AgentRun.objects.filter(pk=run.pk).update(status="completed", final_output=answer)


def _measured(user: Any, asked: argparse.Namespace) -> dict[str, Any]:
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

    found: dict[str, Any] = {"messages": asked.messages}
    get()  # What a process loads once.
    first = []
    for _ in range(asked.rounds):
        markdown._rendered.cache_clear()
        first.append(get())
    found["first_ms"] = round(statistics.median(first))
    found["next_ms"] = round(statistics.median(get() for _ in range(asked.rounds)))
    with CaptureQueriesContext(connection) as queries:
        get()
    return {**found, "statements": len(queries)}


if __name__ == "__main__":
    main()
