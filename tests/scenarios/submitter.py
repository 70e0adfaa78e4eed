"""The web process of a scenario: dispatches runs, and stays alive behind them.

It keeps so many runs unfinished until it is told to stop (a file appears), or dispatches them all
at once; the first line that it prints says that it is ready::

    python -m tests.scenarios.submitter steady 50
    python -m tests.scenarios.submitter busy,steady 6 --until directory/stop
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

import django

django.setup()

from django.contrib.auth.models import User  # noqa: E402
from django.db import Error, close_old_connections  # noqa: E402

from agentic_django.engine import queues  # noqa: E402
from agentic_django.models import ACTIVE, AgentRun  # noqa: E402
from agentic_django.services import submit_agent_run  # noqa: E402


def submit(user: User, key: str) -> None:
    """Dispatch one run in a conversation of its own."""
    submit_agent_run(owner=user, agent_key=key, input_payload="Begin.")


def submit_all(user: User, keys: list[str], count: int) -> None:
    """Dispatch so many runs."""
    for _ in range(count):
        submit(user, random.choice(keys))


def keep_busy(user: User, keys: list[str], count: int, stop: Path) -> None:
    """Dispatch runs whenever fewer than so many are unfinished."""
    while not stop.exists():
        try:
            if AgentRun.objects.filter(status__in=ACTIVE).count() < count:
                submit(user, random.choice(keys))
                continue
        except Error:
            close_old_connections()
        time.sleep(0.1)


def die() -> None:
    """End as if killed between a commit and what follows it."""
    os._exit(9)


def main(keys: str, count: str, *options: str) -> None:
    """Dispatch, and stay."""
    user, _ = User.objects.get_or_create(username="ada")
    if "--die" in options:
        queues.enqueue = lambda run_id, agent_key: die()
    print("ready", flush=True)
    if "--until" in options:
        keep_busy(user, keys.split(","), int(count), Path(options[-1]))
    else:
        submit_all(user, keys.split(","), int(count))
    print("dispatched", flush=True)
    while True:
        time.sleep(1)


if __name__ == "__main__":
    main(*sys.argv[1:])
