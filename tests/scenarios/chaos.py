"""Real workers on PostgreSQL and Valkey, killed and paused at random; and what came of it.

    python -m tests.scenarios.chaos --minutes 10 --seed 1

Three stock RQ workers carry runs with several tools, model calls and an agent as tool, which a
web-like process dispatches. Meanwhile their jobs' processes and they themselves are killed
(SIGKILL) and paused past their leases (SIGSTOP, SIGCONT). Then everything is left alone, and
each run is compared with an undisturbed one. The exit status is 1 if an event or item is missing
or doubled, or a run is stuck.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import django
import psutil

django.setup()

from django.db import close_old_connections  # noqa: E402

from agentic_django.models import ACTIVE, AgentRun  # noqa: E402
from tests.scenarios import effects  # noqa: E402
from tests.scenarios.record import Record, record_of  # noqa: E402
from tests.support import servers  # noqa: E402
from tests.support.processes import Process, Project, wait_until  # noqa: E402

LEASE = 3.0
AGENTS = ("busy", "steady")
WORKERS = 3
UNFINISHED = 8
"""How many runs are unfinished at any time."""


@dataclass
class Result:
    """What is printed at the end."""

    runs: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    repeated: list[str] = field(default_factory=list)
    in_flight: int = 0
    events: list[str] = field(default_factory=list)
    items: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)

    @property
    def is_good(self) -> bool:
        """Whether nothing was lost, doubled or stuck."""
        return not (self.repeated or self.events or self.items or self.stuck)

    def lines(self) -> Iterator[str]:
        """Say it in words."""
        kills = ", ".join(f"{count} {name}" for name, count in sorted(self.kills.items()))
        yield f"runs                              {self.runs}"
        yield f"kills and pauses                  {self.kills.total()} ({kills})"
        yield f"calls repeated while in flight    {self.in_flight}"
        yield f"journaled calls repeated          {len(self.repeated)}"
        yield f"duplicated or missing events      {len(self.events)}"
        yield f"duplicated or missing items       {len(self.items)}"
        yield f"stuck or failed runs              {len(self.stuck)}"
        for problem in [*self.repeated, *self.events, *self.items, *self.stuck][:20]:
            yield f"  {problem[:400]}"


class Chaos:
    """One go: workers, a submitter, and what is done to them."""

    def __init__(self, project: Project, seed: int) -> None:
        self.project = project
        self.random = random.Random(seed)
        self.result = Result()
        self.workers = [project.rq_worker() for _ in range(WORKERS)]
        self.paused: list[tuple[float, psutil.Process]] = []

    @contextmanager
    def running(self) -> Iterator[Path]:
        """Start the workers and the submitter; yields the file that stops the latter."""
        stop = self.project.directory / "stop"
        arguments = (",".join(AGENTS), str(UNFINISHED), "--until", str(stop))
        submitter = self.project.process("-m", "tests.scenarios.submitter", *arguments)
        with ExitStack() as stack:
            for worker in self.workers:
                stack.enter_context(worker)
            stack.enter_context(submitter)
            yield stop

    def disturb(self, seconds: float) -> None:
        """Kill and pause processes at random moments."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            time.sleep(self.random.uniform(0.2, 2.0))
            self._wake()
            worker = self.random.choice(self.workers)
            act = self.random.choices((self._kill_job, self._kill_worker, self._pause), (6, 2, 1))[
                0
            ]
            with suppress(psutil.Error):
                act(worker)
        self._wake(everything=True)

    def _kill_job(self, worker: Process) -> None:
        for job in worker.children()[:1]:
            job.kill()
            self.result.kills["jobs' processes killed"] += 1

    def _kill_worker(self, worker: Process) -> None:
        """Kill a worker; its job's process goes on beside the worker that takes its place."""
        self.result.kills["workers killed"] += 1
        worker.kill_alone()
        self.workers[self.workers.index(worker)] = self._again(worker)

    def _again(self, worker: Process) -> Process:
        """Start a worker of another name; its family is still known by its log."""
        fresh = self.project.rq_worker()
        fresh.log, fresh.ready = worker.log, lambda process: True
        return fresh.start()

    def _pause(self, worker: Process) -> None:
        for job in worker.children()[:1]:
            job.suspend()
            self.paused.append((time.monotonic() + LEASE + 2, job))
            self.result.kills["jobs' processes paused"] += 1

    def _wake(self, *, everything: bool = False) -> None:
        for due, job in list(self.paused):
            if everything or due < time.monotonic():
                self.paused.remove((due, job))
                with suppress(psutil.Error):
                    job.resume()

    def settle(self) -> None:
        """Wait for all runs to end, for as long as they may take: lease, sweep, and 20 s."""
        unfinished = AgentRun.objects.filter(status__in=ACTIVE)
        allowed = LEASE + LEASE / 3 + 20 + UNFINISHED * 3
        with suppress(TimeoutError):
            wait_until(lambda: not unfinished.exists(), timeout=allowed)

    def examine(self) -> Result:
        """Compare every run with an undisturbed one."""
        undisturbed: dict[str, Record] = {}
        for run in AgentRun.objects.order_by("attempt", "created_at"):
            self.result.runs += 1
            found = record_of(run)
            self._note(run, found, undisturbed.setdefault(run.agent_key, found))
        executions = Counter((effect.run, effect.key) for effect in effects.read())
        self.result.in_flight = sum(count - 1 for count in executions.values())
        return self.result

    def _note(self, run: AgentRun, found: Record, expected: Record) -> None:
        result = self.result
        if found.status != "completed":
            result.stuck.append(f"{run.pk} {found.status} {run.error_code} {run.attempt}")
            return
        gaps = [p for p in found.problems if p.startswith("events")]
        result.repeated += [f"{run.pk} {p}" for p in found.problems if p not in gaps]
        result.events += [f"{run.pk} {gap}" for gap in gaps]
        for text in found.differences(expected):
            kind = result.events if text.startswith(("events", "ends")) else result.items
            kind.append(f"{run.pk} {text}")


def wreak(project: Project, *, seconds: float, seed: int) -> Result:
    """Disturb a project's workers for a while and return what came of it."""
    chaos = Chaos(project, seed)
    with chaos.running() as stop:
        chaos.disturb(seconds)
        stop.touch()
        close_old_connections()
        chaos.settle()
        for worker in chaos.workers:
            worker.kill()
    return chaos.examine()


def main() -> None:
    """Start servers, wreak chaos, print what came of it."""
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--soak", action="store_true", help="Watch for growth instead.")
    parser.add_argument("--batch", type=int, default=0, help="Kill through a batch instead.")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    if options.soak or options.batch:
        from tests.scenarios import soak

        soak.main(options)
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="agentic-chaos-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        project = stack.enter_context(started(directory))
        stack.enter_context(project.in_process())
        print(f"Seed {options.seed}, {options.minutes:g} minutes", flush=True)
        result = wreak(project, seconds=60 * options.minutes, seed=options.seed)
    print("\n".join(result.lines()))
    sys.exit(0 if result.is_good else 1)


@contextmanager
def started(directory: Path) -> Iterator[Project]:
    """Start a PostgreSQL and a Valkey of their own; yields the project on them."""
    os.environ[servers.DIRECTORY] = str(directory)
    os.environ[effects.FILE] = str(directory / "effects")
    extra = {"AGENTIC_TEST_LEASE": str(LEASE), "AGENTIC_TEST_ATTEMPTS": "20"}
    with (
        servers.Postgres() as postgres,
        servers.Valkey() as valkey,
        servers.new_database(postgres.url()) as url,
    ):
        settings = "tests.scenarios.settings"
        yield Project(url, valkey.port, "rq", settings, directory, extra)


if __name__ == "__main__":
    main()
