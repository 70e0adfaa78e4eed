"""Many runs in flight: memory of the process that carries them, and how soon each began.

``python -m benchmarks.in_flight [--runs 500] [--source rq|database]`` prints JSON. One process
carries so many runs at once, each of which waits for its model; given are its resident and its
private memory in MB, before and during that. Then, while so many are in flight, 200 more runs
are submitted one after another, and the time from a run's creation to its first event is given
by the database's clock, with what it is made of: to being sent to RQ, and to being claimed.

``--through 20000`` instead has one process carry so many plain runs, a thousand at a time, and
gives its memory after each tenth of them.
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

from benchmarks.workers import _running, servers


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--late", type=int, default=200)
    parser.add_argument("--through", type=int, default=0)
    parser.add_argument("--source", choices=("rq", "database"), default="rq")
    asked = parser.parse_args()
    code = f"from benchmarks.in_flight import one; one({json.dumps(vars(asked))!r})"
    with servers() as env:
        env["BENCH_TASKS"] = "rows" if asked.source == "database" else "rq"
        subprocess.run([sys.executable, "-c", code], env=env, check=True)  # noqa: S603


def one(given: str) -> None:
    """Measure in a process whose Django knows the servers."""
    import django

    asked = argparse.Namespace(**json.loads(given))
    django.setup()
    from django.contrib.auth import get_user_model
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    user = get_user_model().objects.create_user("bench")
    slots = asked.runs + asked.late
    command = [sys.executable, "-m", "django", "agentic_django_worker"]
    command += [f"--source={asked.source}", f"--concurrency={slots}"]
    load = os.getloadavg()[0]
    with _running([command]) as [supervisor]:
        measure = _through if asked.through else _measured
        print(json.dumps({**measure(user, asked, supervisor.pid), "load": load}, indent=2))
        _end()
        supervisor.terminate()
        supervisor.wait(60)


def _measured(user: Any, asked: argparse.Namespace, supervisor: int) -> dict[str, Any]:
    _submit(user, "plain", 20)
    _wait("completed", 20)
    worker = _only_child(supervisor)
    idle = _megabytes(worker)
    _submit(user, "endless", asked.runs)
    _wait("running", asked.runs)
    busy = _megabytes(worker)
    for _ in range(asked.late):
        _submit(user, "plain", 1)
    _wait("completed", 20 + asked.late)
    return {**vars(asked), "idle": idle, "in_flight": busy, "milliseconds": _begun(asked.late)}


def _through(user: Any, asked: argparse.Namespace, supervisor: int) -> dict[str, Any]:
    _submit(user, "plain", 20)
    _wait("completed", 20)
    worker, tenth = _only_child(supervisor), asked.through // 10
    sizes: list[dict[str, float]] = []
    for n in range(1, 11):
        for _ in range(0, tenth, 1000):
            _submit(user, "plain", min(tenth, 1000))
        _wait("completed", 20 + n * tenth)
        sizes.append({"runs": n * tenth, **_megabytes(worker)})
        print(sizes[-1], file=sys.stderr)
    return {**vars(asked), "memory": sizes}


def _only_child(supervisor: int) -> psutil.Process:
    [child] = psutil.Process(supervisor).children()
    return child


def _megabytes(process: psutil.Process) -> dict[str, float]:
    memory = process.memory_full_info()
    found = {"resident_mb": memory.rss, "private_mb": memory.uss}
    return {name: round(size / 1e6, 1) for name, size in found.items()}


def _submit(user: Any, agent: str, runs: int) -> None:
    from agentic_django.services import submit_agent_run

    for _ in range(runs):
        submit_agent_run(owner=user, input_payload="Hello", agent_key=agent)


def _wait(status: str, count: int) -> None:
    from agentic_django.models import AgentRun

    while AgentRun.objects.filter(status=status).count() < count:
        time.sleep(0.2)


def _begun(count: int) -> dict[str, dict[str, float]]:
    from agentic_django.models import AgentEvent

    first = AgentEvent.objects.filter(sequence=1, run__agent_key="plain").select_related("run")
    late: list[Any] = list(first.order_by("-run__created_at")[:count])
    steps = {
        "to first event": [event.created_at - event.run.created_at for event in late],
        "to claim": [event.run.started_at - event.run.created_at for event in late],
    }
    if all(event.run.enqueued_at for event in late):  # Where the row is the queue, none is.
        steps["to being sent"] = [event.run.enqueued_at - event.run.created_at for event in late]
    return {name: _spread([s.total_seconds() * 1000 for s in each]) for name, each in steps.items()}


def _spread(values: list[float]) -> dict[str, float]:
    ranks = statistics.quantiles(values, n=100)
    return {"median": round(ranks[49], 1), "p95": round(ranks[94], 1)}


def _end() -> None:
    from agentic_django.models import AgentRun
    from agentic_django.services import cancel_agent_run

    for run in AgentRun.objects.filter(status="running"):
        cancel_agent_run(run)


if __name__ == "__main__":
    main()
