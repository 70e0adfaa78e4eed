"""Workers with many slots under a steady load, watched for growth; or a batch under kills.

    scripts/chaos --soak --minutes 20
    scripts/chaos --batch 2000

A soak keeps a worker of two processes at half of what it can carry, and samples the memory of its
processes, their open files and connections, and the keys in Valkey. The exit status is 1 if
anything grows from the second quarter to the last, or a run fails. A batch fills the queue, kills
a process of the worker (SIGKILL) every ten seconds until all runs have completed, and looks
whether any call that was recorded was made again.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import redis
from django.contrib.auth.models import User
from django.db import connection
from django.utils import timezone

from agentic_django.models import ACTIVE, AgentEvent, AgentRun, AgentSession
from agentic_django.services import submit_agent_run
from tests.scenarios import effects
from tests.scenarios.chaos import started
from tests.scenarios.record import record_of
from tests.support.processes import Process, Project, wait_until

PROCESSES, SLOTS = 2, 100
SAMPLE_SECONDS = 5.0
ALLOWED_GROWTH = {"memory_mb": 1.10, "files": 1.15, "connections": 1.15, "keys": 1.15}


def main(options: argparse.Namespace) -> None:
    """Soak, or carry a batch under kills; prints what came of it and ends with the status."""
    with project() as here:
        is_good = batch(here, options.batch) if options.batch else soak(here, options.minutes * 60)
    sys.exit(0 if is_good else 1)


@contextmanager
def project() -> Iterator[Project]:
    """Start servers, and a project on them for processes and for this one."""
    with ExitStack() as stack:
        directory = Path(tempfile.mkdtemp(prefix="agentic-soak-"))
        stack.callback(shutil.rmtree, directory, ignore_errors=True)
        here = stack.enter_context(started(directory))
        stack.enter_context(here.in_process())
        yield here


# Soak


@dataclass
class Samples:
    """What was seen of a worker over time."""

    worker: Process
    port: int
    seen: dict[str, list[float]] = field(default_factory=lambda: {k: [] for k in ALLOWED_GROWTH})

    def take(self) -> None:
        """Look once; the processes' memory is their private one."""
        processes = self.worker.children()
        memory = sum(p.memory_full_info().uss for p in processes) / 1e6
        files = sum(p.num_fds() for p in processes)
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE datname IS NOT NULL")
            connections = cursor.fetchone()[0]
        with redis.Redis(host="127.0.0.1", port=self.port) as client:
            keys = client.dbsize()
        for name, value in zip(ALLOWED_GROWTH, (memory, files, connections, keys), strict=True):
            self.seen[name].append(float(value))

    def growth(self) -> Iterator[tuple[str, float, float, bool]]:
        """Return, by name: the medians of the second quarter and of the last, and if it is well."""
        for name, values in self.seen.items():
            quarter = max(1, len(values) // 4)
            before = statistics.median(values[quarter : 2 * quarter] or values)
            after = statistics.median(values[-quarter:])
            yield name, before, after, after <= before * ALLOWED_GROWTH[name] + 3


def soak(here: Project, seconds: float) -> bool:
    """Keep a worker at half its load for so long."""
    user = User.objects.create_user("ada")
    with at_work(here) as worker:
        rate = pace(user)
        print(f"Carries {rate:.1f} runs a second; soaked at half of it", flush=True)
        samples, count = Samples(worker, here.redis_port), 0
        end = time.monotonic() + seconds
        due, sample_at = time.monotonic(), time.monotonic()
        while time.monotonic() < end:
            if time.monotonic() >= due:
                submit_agent_run(owner=user, agent_key="parallel", input_payload="Begin.")
                count, due = count + 1, due + 2 / rate
            if time.monotonic() >= sample_at:
                sample_at += SAMPLE_SECONDS
                samples.take()
                forget()
            time.sleep(max(0.0, min(due, sample_at) - time.monotonic()))
        wait_until(lambda: not AgentRun.objects.filter(status__in=ACTIVE).exists(), timeout=60)
    return tell(samples, count)


def pace(user: User) -> float:
    """Measure how many runs the worker carries in a second."""
    count = 100
    began = time.monotonic()
    for _ in range(count):
        submit_agent_run(owner=user, agent_key="parallel", input_payload="Begin.")
    wait_until(lambda: not AgentRun.objects.filter(status__in=ACTIVE).exists(), timeout=120)
    return count / (time.monotonic() - began)


def forget() -> None:
    """Delete what is over, as retention would: the table's growth is not the worker's."""
    over = AgentRun.objects.filter(status="completed", finished_at__lt=timezone.now())
    old = list(over.order_by("-finished_at").values_list("pk", flat=True)[200:1200])
    AgentRun.objects.filter(pk__in=old).delete()
    AgentSession.objects.filter(runs=None).delete()


def tell(samples: Samples, count: int) -> bool:
    """Print what came of a soak."""
    failed = AgentRun.objects.exclude(status="completed").count()
    print(f"runs                 {count}\nnot completed        {failed}")
    is_good = not failed
    for name, before, after, is_well in samples.growth():
        print(f"{name:<20} {before:.1f} → {after:.1f}{'' if is_well else '  GROWS'}")
        is_good &= is_well
    return is_good


@contextmanager
def at_work(here: Project, *more: str) -> Iterator[Process]:
    """Start a worker of two processes."""
    options = (f"--processes={PROCESSES}", f"--concurrency={SLOTS}", *more)
    with here.worker(*options) as worker:
        wait_until(lambda: len(worker.children()) == PROCESSES)
        yield worker


# A batch under kills


def batch(here: Project, count: int) -> bool:
    """Carry so many runs while a process of the worker is killed every ten seconds."""
    user = User.objects.create_user("ada")
    for _ in range(count):
        submit_agent_run(owner=user, agent_key="steady", input_payload="Begin.")
    kills, began = 0, time.monotonic()
    with at_work(here) as worker:
        while AgentRun.objects.filter(status__in=ACTIVE).exists():
            wait_seconds(10)
            kills += kill_one(worker)
    seconds = time.monotonic() - began
    executions = effects.read()
    of_run = defaultdict(list)
    for effect in executions:
        of_run[effect.run].append(effect)
    records = (record_of(run, of_run[str(run.pk)]) for run in AgentRun.objects.all())
    repeated = sum(bool(record.problems) for record in records)
    failed = AgentRun.objects.exclude(status="completed").count()
    ends = AgentEvent.objects.filter(event_type="run.completed").count()
    doubled = len(executions) - len({(e.run, e.key) for e in executions})
    print(f"runs                            {count}, in {seconds:.0f} s")
    print(f"processes killed                {kills}")
    print(f"not completed                   {failed}")
    print(f"completed more than once        {ends - (count - failed)}")
    print(f"runs with recorded calls again  {repeated}")
    print(f"calls repeated while in flight  {doubled}")
    return not (failed or repeated or ends - count)


def wait_seconds(seconds: float) -> None:
    """Wait so long, or until no run is unfinished."""
    with suppress(TimeoutError):
        unfinished = AgentRun.objects.filter(status__in=ACTIVE)
        wait_until(lambda: time.sleep(0.5) or not unfinished.exists(), timeout=seconds)


def kill_one(worker: Process) -> int:
    """Kill a process of the worker, if runs are unfinished."""
    if not AgentRun.objects.filter(status__in=ACTIVE).exists():
        return 0
    parent = psutil.Process(worker.pid)
    children = [c for c in parent.children() if c.status() != psutil.STATUS_ZOMBIE]
    if children:
        os.kill(random.choice(children).pid, 9)
    return len(children[:1])
