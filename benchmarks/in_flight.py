"""Measures a worker process with many running runs: its memory, and how soon it starts a run.

``python -m benchmarks.in_flight [--runs 500] [--source rq|database]`` prints JSON. One process
executes the runs at once; each waits for its model. The output has the resident and the private
memory of the process in MB, before and during that. Then 200 more runs are submitted one after
another. The output has the time from the creation of a run to its first event by the database's
clock, and its parts: until it is enqueued to RQ, and until it is claimed.

``--through 20000`` instead lets one process execute this number of plain runs, a thousand at a
time, and prints its memory after each tenth of them.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import psutil

from benchmarks import command, site
from benchmarks.workers import running_processes, servers


def main() -> None:
    """Measure and print the result."""
    parser = command.parser(__doc__, runs=500, late=200, through=0)
    parser.add_argument("--source", choices=("rq", "database"), default="rq")
    options = parser.parse_args()
    code = f"from benchmarks.in_flight import measure; measure({json.dumps(vars(options))!r})"
    with servers() as env:
        env["BENCH_TASKS"] = "rows" if options.source == "database" else "rq"
        subprocess.run([sys.executable, "-c", code], env=env, check=True)  # noqa: S603


def measure(arguments: str) -> None:
    """Measure in a process whose Django uses the servers, and print the result."""
    import django

    options = argparse.Namespace(**json.loads(arguments))
    django.setup()
    user = site.create_user()
    slots = options.runs + options.late
    worker = [sys.executable, "-m", "django", "agentic_django_worker"]
    worker += [f"--source={options.source}", f"--concurrency={slots}"]
    load = os.getloadavg()[0]
    with running_processes([worker]) as [supervisor]:
        perform = _through if options.through else _measured
        print(json.dumps({**perform(user, options, supervisor.pid), "load": load}, indent=2))
        _cancel_runs()
        supervisor.terminate()
        supervisor.wait(60)


def _measured(user: Any, options: argparse.Namespace, supervisor: int) -> dict[str, Any]:
    site.submit(user, "plain", 20)
    _wait("completed", 20)
    worker = _only_child(supervisor)
    idle = _megabytes(worker)
    site.submit(user, "endless", options.runs)
    _wait("running", options.runs)
    busy = _megabytes(worker)
    for _ in range(options.late):
        site.submit(user, "plain", 1)
    _wait("completed", 20 + options.late)
    return {
        **vars(options),
        "idle": idle,
        "in_flight": busy,
        "milliseconds": _start_times(options.late),
    }


def _through(user: Any, options: argparse.Namespace, supervisor: int) -> dict[str, Any]:
    site.submit(user, "plain", 20)
    _wait("completed", 20)
    worker, tenth = _only_child(supervisor), options.through // 10
    sizes: list[dict[str, float]] = []
    for n in range(1, 11):
        for _ in range(0, tenth, 1000):
            site.submit(user, "plain", min(tenth, 1000))
        _wait("completed", 20 + n * tenth)
        sizes.append({"runs": n * tenth, **_megabytes(worker)})
        print(sizes[-1], file=sys.stderr)
    return {**vars(options), "memory": sizes}


def _only_child(supervisor: int) -> psutil.Process:
    [child] = psutil.Process(supervisor).children()
    return child


def _megabytes(process: psutil.Process) -> dict[str, float]:
    memory = process.memory_full_info()
    found = {"resident_mb": memory.rss, "private_mb": memory.uss}
    return {name: round(size / 1e6, 1) for name, size in found.items()}


def _wait(status: str, count: int) -> None:
    from agentic_django.models import AgentRun

    while AgentRun.objects.filter(status=status).count() < count:
        time.sleep(0.2)


def _start_times(count: int) -> dict[str, dict[str, float]]:
    from agentic_django.models import AgentEvent

    first = AgentEvent.objects.filter(sequence=1, run__agent_key="plain").select_related("run")
    late: list[Any] = list(first.order_by("-run__created_at")[:count])
    steps = {
        "to first event": [event.created_at - event.run.created_at for event in late],
        "to claim": [event.run.started_at - event.run.created_at for event in late],
    }
    if all(event.run.enqueued_at for event in late):  # Not if the row is the queue.
        steps["to enqueue"] = [event.run.enqueued_at - event.run.created_at for event in late]
    return {name: _spread([s.total_seconds() * 1000 for s in each]) for name, each in steps.items()}


def _spread(values: list[float]) -> dict[str, float]:
    ranks = statistics.quantiles(values, n=100)
    return {"median": round(ranks[49], 1), "p95": round(ranks[94], 1)}


def _cancel_runs() -> None:
    from agentic_django.models import AgentRun
    from agentic_django.services import cancel_agent_run

    for run in AgentRun.objects.filter(status="running"):
        cancel_agent_run(run)


if __name__ == "__main__":
    main()
