"""Runs of stock RQ workers end whichever process or server dies, on PostgreSQL and Valkey.

After a failure a run may need the time of its lease, a sweep and 20 seconds. Another process
submits the runs and continues to exist, as a web process does.
"""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import Error, close_old_connections

from agentic_django.engine import queues
from agentic_django.models import ACTIVE, AgentRun, ToolApproval
from agentic_django.services import cancel_agent_run, decide_approval
from tests.scenarios import chaos, effects
from tests.scenarios.conftest import project
from tests.scenarios.record import Record, record_of
from tests.support import servers
from tests.support.processes import Process, Project, wait_until

pytestmark = [pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(240)]

LEASE = 3.0
ALLOWED = LEASE + LEASE / 3 + 20


@contextmanager
def working(project: Project, workers: int, *submitter: str) -> Iterator[list[Process]]:
    """Start workers, and a process that submits runs; yield the workers."""
    with ExitStack() as stack:
        started = [stack.enter_context(project.rq_worker()) for _ in range(workers)]
        if submitter:
            stack.enter_context(dispatching(project, *submitter))
        yield started


@contextmanager
def dispatching(project: Project, *arguments: str) -> Iterator[Process]:
    """Start a process that submits runs, and yield it after it has submitted all."""
    process = project.process(
        "-m",
        "tests.scenarios.submitter",
        *arguments,
        ready=lambda process: "dispatched" in process.output(),
    )
    with process:
        yield process


def statuses() -> Counter[str]:
    """Count the runs by their status; return no counts while the database is away."""
    try:
        return Counter(AgentRun.objects.values_list("status", flat=True))
    except Error:
        close_old_connections()
        return Counter()


def all_end(count: int, *, seconds: float = ALLOWED) -> None:
    """Wait until this number of runs has completed and there are no others."""
    what = lambda: f"{count} completed runs: {statuses()}"  # noqa: E731
    wait_until(lambda: statuses() == {"completed": count}, timeout=seconds, what=what)


def check_all(attempts: int | None = None) -> list[Record]:
    """Assert that all runs have the same results, and that no call was repeated."""
    records = [record_of(run) for run in AgentRun.objects.order_by("attempt", "created_at")]
    for found in records:
        assert found.problems == []
        assert found.differences(records[0]) == []
    if attempts is not None:
        assert set(AgentRun.objects.values_list("attempt", flat=True)) == {attempts}
    return records


def running() -> AgentRun | None:
    return AgentRun.objects.filter(status="running").first()


def sent(*keys: str, times: int = 1) -> list[AgentRun]:
    """Return runs of these agents after enqueueing each ``times`` times."""
    user = User.objects.create_user("ada")
    made = [
        AgentRun.objects.create(owner=user, agent_key=key, input_payload="Begin.") for key in keys
    ]
    for run in made * times:
        queues.enqueue(str(run.pk), run.agent_key)
    return made


# Killed


def test_runs_end_alike_while_processes_are_killed_at_random(in_scenario: Project) -> None:
    in_scenario.extra["AGENTIC_TEST_ATTEMPTS"] = "20"
    result = chaos.wreak(in_scenario, seconds=20, seed=7)
    assert result.is_good, "\n".join(result.lines())
    assert result.runs > 3, "\n".join(result.lines())
    assert result.kills.total() > 3, "\n".join(result.lines())


def test_a_worker_finishes_its_run_after_sigterm(in_scenario: Project) -> None:
    [run] = sent("steady")
    with working(in_scenario, 1) as [worker]:
        effects.wait_for(str(run.pk), ":tool:")
        assert worker.stop(timeout=30) == 0
        all_end(1, seconds=1)
    check_all(attempts=1)


def test_a_run_that_is_delivered_many_times_is_executed_once(in_scenario: Project) -> None:
    sent(*["steady"] * 4, times=3)
    with working(in_scenario, 2):
        all_end(4, seconds=60)
    check_all(attempts=1)


def test_a_run_whose_process_died_before_enqueueing_it_is_enqueued_by_a_sweep(
    in_scenario: Project,
) -> None:
    dying = in_scenario.process("-m", "tests.scenarios.submitter", "plain", "1", "--die")
    with dying:
        assert dying.popen is not None
        assert dying.popen.wait(30) == 9
    assert statuses() == {"pending": 1}
    with working(in_scenario, 1, "plain", "1"):
        all_end(2)
    check_all(attempts=1)


def test_clocks_that_are_ten_minutes_off_change_nothing(in_scenario: Project) -> None:
    ahead, behind = {"AGENTIC_TEST_CLOCK": "600"}, {"AGENTIC_TEST_CLOCK": "-600"}
    with ExitStack() as stack:  # Each worker sweeps after each of its runs.
        first, _ = (stack.enter_context(in_scenario.rq_worker(**by)) for by in (ahead, behind))
        stack.enter_context(dispatching(in_scenario, "blocking", "5"))
        wait_until(lambda: statuses()["running"] == 2, timeout=30)
        for job in first.children():
            job.kill()
        all_end(5, seconds=ALLOWED + 40)
    check_all()
    runs = AgentRun.objects.all()
    assert Counter(run.attempt for run in runs) == {1: 4, 2: 1}
    took = [(run.finished_at - run.started_at).total_seconds() for run in runs]
    assert 0 < min(took) <= max(took) < 120  # The times come from one clock, the database's.


# Cancelled


def test_runs_are_cancelled_from_another_process(in_scenario: Project) -> None:
    waiting, blocking = sent("waiting", "blocking")
    with working(in_scenario, 1) as [worker]:
        check_cancelled(waiting, worker, seconds=2.5)
        check_cancelled(blocking, worker, seconds=20)  # It is abandoned, but cannot be stopped.


def check_cancelled(run: AgentRun, worker: Process, *, seconds: float) -> None:
    """Cancel a run during its tool call; its process ends and changes nothing."""
    pid = effects.wait_for(str(run.pk), ":tool:", timeout=30).pid
    cancel_agent_run(run)
    before = record_of(run)
    wait_until(lambda: pid not in [job.pid for job in worker.children()], timeout=seconds)
    after = record_of(run)
    assert after == before
    assert after.status == "cancelled"
    assert after.ends == ["run.cancelled"]
    assert after.usage["requests"] == 1
    assert [kind for kind in after.journal if '"tool"' in kind] == []


# The servers


def test_a_queue_that_is_emptied_loses_no_run(in_scenario: Project, valkey: servers.Valkey) -> None:
    with dispatching(in_scenario, "plain", "50"):
        valkey.flush()
        with working(in_scenario, 2):
            all_end(50, seconds=ALLOWED + 40)  # Fifty processes are forked for them.
    check_all(attempts=1)


def test_a_queue_that_is_restarted_loses_no_run(
    own_valkey: servers.Valkey, tmp_path: Path, enter: Callable[[Project], None]
) -> None:
    with servers.new_database() as url:
        here = project(url, own_valkey.port, tmp_path)
        enter(here)
        with working(here, 2, "steady", "8"):
            wait_until(running)
            own_valkey.kill()
            time.sleep(2)
            own_valkey.start()
            all_end(8, seconds=ALLOWED + 10)
        check_all()


@pytest.mark.parametrize("how", ["stop", "crash"])
def test_a_database_that_is_restarted_under_load_loses_no_run(
    postgres: servers.Postgres,
    valkey: servers.Valkey,
    tmp_path: Path,
    enter: Callable[[Project], None],
    how: str,
) -> None:
    with servers.new_database(postgres.url()) as url:
        here = project(url, valkey.port, tmp_path)
        enter(here)
        with working(here, 2, "steady", "8"):
            wait_until(lambda: statuses()["running"] == 2)
            time.sleep(0.7)
            getattr(postgres, how)()
            time.sleep(1)
            postgres.start()
            all_end(8, seconds=ALLOWED + 10)
        records = check_all()
        assert len(records) == 8


@pytest.fixture
def enter(
    django_db_blocker: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[Project], None]]:
    """Let this process use a project: its database, its queue, its file of effects."""
    with ExitStack() as stack:

        def enter(project: Project) -> None:
            monkeypatch.setenv(effects.FILE, project.extra[effects.FILE])
            stack.enter_context(django_db_blocker.unblock())
            stack.enter_context(project.in_process())

        yield enter


# Paused


def test_a_worker_that_was_paused_past_its_lease_changes_nothing(in_scenario: Project) -> None:
    with working(in_scenario, 2, "blocking", "1") as workers:
        run = AgentRun.objects.get()
        effects.wait_for(str(run.pk), ":tool:", timeout=30)
        [busy] = [worker for worker in workers if worker.children()]
        busy.signal_all(signal.SIGSTOP)
        all_end(1)
        finished = record_of(run)
        busy.signal_all(signal.SIGCONT)
        wait_until(lambda: not busy.children(), timeout=20)
        assert record_of(run) == finished
        assert run.attempt == 2
        assert not AgentRun.objects.filter(status__in=ACTIVE).exists()
    executed = Counter(effect.attempt for effect in effects.read() if ":tool:" in effect.key)
    assert executed == {1: 1, 2: 1}


def test_a_waiting_run_resumes_after_all_processes_were_restarted(in_scenario: Project) -> None:
    with working(in_scenario, 1, "gate", "1"):
        wait_until(lambda: statuses() == {"waiting": 1}, timeout=ALLOWED, what=statuses)
    approval = ToolApproval.objects.open().select_related("run").get()
    assert [e for e in effects.read(str(approval.run_id)) if ":tool:" in e.key] == []
    with working(in_scenario, 1):
        decide_approval(approval, True)
        all_end(1)
    made = [e for e in effects.read(str(approval.run_id)) if ":tool:" in e.key]
    assert len(made) == 1
