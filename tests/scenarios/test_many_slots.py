"""Workers with many slots execute, finish and release runs, on PostgreSQL and Valkey."""

from __future__ import annotations

import json
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import django_rq
import pytest
from django.contrib.auth.models import Group, User
from django.db import connection, transaction
from django.db.models.functions import Now
from rq.suspension import resume, suspend

from agentic_django.engine import queues
from agentic_django.engine.run_rows import run_rows
from agentic_django.models import AgentRun, ToolApproval
from agentic_django.services import cancel_agent_run, decide_approval, submit_agent_run
from tests.project import test_infrastructure
from tests.scenarios import effects
from tests.scenarios.conftest import project
from tests.scenarios.record import record_of
from tests.scenarios.test_workers import (
    ALLOWED,
    all_end,
    check_all,
    dispatching,
    enter,
    statuses,
)
from tests.support import servers
from tests.support.processes import Process, Project, wait_until

__all__ = ["enter"]  # A fixture of the other workers' tests.

pytestmark = [pytest.mark.postgres, pytest.mark.slow, pytest.mark.timeout(240)]

SOURCES = ("rq", "rows")


@pytest.fixture(params=SOURCES)
def source(request: pytest.FixtureRequest, scenario: Project) -> str:
    """Where runs are enqueued: on RQ's queue, or in their table. Each test has both in turn."""
    scenario.tasks = request.param
    return scenario.tasks


@pytest.fixture
def user(in_scenario: Project, settings: Any) -> User:
    settings.AGENTIC_DJANGO_AGENT_REGISTRY = "tests.scenarios.agents.agents"
    return User.objects.create_user("ada")


def submitted(user: User, key: str, count: int = 1, **more: Any) -> list[AgentRun]:
    return [
        submit_agent_run(owner=user, agent_key=key, input_payload="Begin.", **more)
        for _ in range(count)
    ]


def exit_status(process: Process, *, seconds: float = 60) -> int:
    assert process.popen is not None
    return process.popen.wait(seconds)


def signal_twice(worker: Process) -> None:
    """Send a second signal after the first was handled, late enough to count as another one."""
    worker.signal(signal.SIGTERM)
    wait_until(lambda: "claims no more runs" in worker.output())
    time.sleep(1)
    worker.signal(signal.SIGTERM)
    assert exit_status(worker) == 0


# Executing


def test_one_process_executes_many_runs_at_once(
    source: str, in_scenario: Project, user: User
) -> None:
    submitted(user, "waiting", 30)
    with in_scenario.worker("--concurrency=30"):
        wait_until(lambda: statuses()["running"] == 30, what=lambda: str(statuses()))
        assert AgentRun.objects.values("holder").distinct().count() == 1


def test_no_more_runs_are_claimed_than_there_are_slots(
    source: str, in_scenario: Project, user: User
) -> None:
    submitted(user, "steady", 9)
    seen = set()

    def is_done() -> bool:
        seen.add(statuses()["running"])
        return statuses() == {"completed": 9}

    with in_scenario.worker("--concurrency=3"):
        wait_until(is_done, timeout=60)
    assert max(seen) == 3
    check_all(attempts=1)


def test_a_burst_ends_when_no_run_is_left(source: str, in_scenario: Project, user: User) -> None:
    submitted(user, "plain", 10)
    submitted(user, "parallel", 4, session_key="one")
    in_scenario.manage("agentic_django_worker", "--burst", "--processes=2")
    assert statuses() == {"completed": 14}
    in_one = AgentRun.objects.filter(session__session_key="one").order_by("started_at")
    assert list(in_one.values_list("position", flat=True)) == [1, 2, 3, 4]


def test_the_number_of_database_connections_does_not_depend_on_the_runs(
    source: str, in_scenario: Project, user: User
) -> None:
    submitted(user, "waiting", 60)
    options = ("--concurrency=60", "--connections=3", "--threads=2")
    with in_scenario.worker(*options) as worker:
        wait_until(lambda: statuses()["running"] == 60, what=lambda: str(statuses()))
        [child] = worker.children()
        mine = {c.fd for c in child.net_connections("unix") if ".s.PGSQL" in str(c.raddr)}
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
                " AND pid <> pg_backend_pid()"
            )
            [count] = cursor.fetchone()
        # Three for records, two for tools, the heartbeat's, the listener's.
        assert len(mine) <= 7
        assert count <= 7


def test_a_cancelled_run_ends_in_the_worker(source: str, in_scenario: Project, user: User) -> None:
    [run] = submitted(user, "waiting")
    with in_scenario.worker():
        effects.wait_for(str(run.pk), ":tool:", timeout=30)
        run.refresh_from_db()
        cancel_agent_run(run)
        submitted(user, "plain", 3)
        wait_until(lambda: statuses() == {"cancelled": 1, "completed": 3}, timeout=ALLOWED)
    assert record_of(run).ends == ["run.cancelled"]


def test_a_run_that_exceeds_its_timeout_is_stopped_and_the_others_continue(
    source: str, in_scenario: Project, user: User
) -> None:
    in_scenario.extra["AGENTIC_TEST_RUN_SECONDS"] = "4"
    submitted(user, "waiting", 3)
    submitted(user, "plain", 3)
    with in_scenario.worker():
        wait_until(lambda: statuses() == {"timed_out": 3, "completed": 3}, timeout=60)


@pytest.mark.parametrize("source", ["rows"], indirect=True)  # With RQ the sweep sends them.
def test_runs_without_a_notification_are_claimed_at_the_poll_interval(
    source: str, in_scenario: Project, user: User
) -> None:
    unsent = partial(AgentRun.objects.create, owner=user, agent_key="plain", input_payload="Hm.")
    with in_scenario.worker("--poll-interval=600"):
        submitted(user, "plain")
        wait_until(lambda: statuses() == {"completed": 1}, timeout=30)
        run = unsent()
        time.sleep(3)
        assert statuses() == {"completed": 1, "pending": 1}
        queues.enqueue(str(run.pk), run.agent_key)
        wait_until(lambda: statuses() == {"completed": 2}, timeout=30)
    with in_scenario.worker("--poll-interval=0.2"):
        unsent()
        wait_until(lambda: statuses() == {"completed": 3}, timeout=30)


def test_a_run_whose_row_is_locked_by_its_sender_is_claimed_soon_after(
    in_scenario: Project, user: User
) -> None:
    with in_scenario.worker("--poll-interval=600"):
        submitted(user, "plain")
        wait_until(lambda: statuses() == {"completed": 1}, timeout=30)
        run = AgentRun.objects.create(owner=user, agent_key="plain", input_payload="Hm.")
        with transaction.atomic():
            row = AgentRun.objects.filter(pk=run.pk)
            row.select_for_update().get()
            result = queues.enqueue(str(run.pk), run.agent_key)
            time.sleep(0.025)
            row.update(task_id=result.id, enqueued_at=Now())  # type: ignore[union-attr]
        wait_until(lambda: statuses() == {"completed": 2}, timeout=20)


# Other jobs on the queue


def test_other_tasks_of_the_host_stay_in_the_queue_for_stock_workers(
    in_scenario: Project, user: User
) -> None:
    queue = django_rq.get_queue("default")
    ids = [test_infrastructure.write_group.enqueue(name).id for name in ("one", "two")]
    with in_scenario.worker():
        submitted(user, "plain", 3)
        wait_until(lambda: statuses() == {"completed": 3}, timeout=30)
        wait_until(lambda: queue.job_ids == ids)
        with in_scenario.rq_worker():
            wait_until(lambda: Group.objects.count() == 2, timeout=40)
    assert queue.count == 0


def test_redis_holds_no_job_after_all_runs_have_ended(in_scenario: Project, user: User) -> None:
    with in_scenario.worker("--concurrency=4", "--processes=2"):
        cancelled = submitted(user, "waiting", 2)
        for n in range(4):
            submitted(user, "plain", 5, session_key=f"conversation-{n}")
        twice = submitted(user, "plain", 5)
        for run in twice:
            queues.enqueue(str(run.pk), run.agent_key)
        for run in cancelled:
            cancel_agent_run(run)
        wait_until(lambda: statuses() == {"completed": 25, "cancelled": 2}, timeout=60)
        connection = django_rq.get_connection("default")
        wait_until(lambda: connection.keys() == [b"rq:queues"], what=lambda: str(connection.keys()))
    assert not AgentRun.objects.filter(status="completed").exclude(attempt=1).exists()


def test_suspended_workers_claim_no_runs(in_scenario: Project, user: User) -> None:
    connection = django_rq.get_connection("default")
    suspend(connection)
    with in_scenario.worker("--poll-interval=0.2"):
        submitted(user, "plain", 3)
        time.sleep(2)
        assert statuses() == {"pending": 3}
        resume(connection)
        wait_until(lambda: statuses() == {"completed": 3}, timeout=30)


def test_stock_workers_and_agentic_django_worker_share_a_queue(in_scenario: Project) -> None:
    with (
        dispatching(in_scenario, "steady", "20"),
        in_scenario.rq_worker(),
        in_scenario.worker("--concurrency=4"),
    ):
        all_end(20, seconds=90)
        holders = Counter(AgentRun.objects.values_list("holder", flat=True))
    assert len(holders) >= 2
    check_all(attempts=1)


# Ending


def test_the_first_signal_finishes_running_runs_and_claims_no_more(
    source: str, in_scenario: Project, user: User
) -> None:
    running = submitted(user, "steady", 5)
    with in_scenario.worker("--concurrency=5") as worker:
        wait_until(lambda: statuses()["running"] == 5)
        later = submitted(user, "plain", 3)
        worker.signal(signal.SIGTERM)
        assert exit_status(worker) == 0
    assert {AgentRun.objects.get(pk=run.pk).status for run in running} == {"completed"}
    assert {AgentRun.objects.get(pk=run.pk).status for run in later} == {"pending"}


def test_a_second_signal_releases_the_runs(source: str, in_scenario: Project, user: User) -> None:
    submitted(user, "waiting", 6)
    with in_scenario.worker() as worker:
        wait_until(lambda: statuses()["running"] == 6)
        signal_twice(worker)
    assert statuses() == {"pending": 6}
    assert set(AgentRun.objects.values_list("failures", "lease_ends_at")) == {(0, None)}


def test_a_process_that_dies_is_replaced(source: str, in_scenario: Project) -> None:
    with dispatching(in_scenario, "steady", "12"), in_scenario.worker("--concurrency=6") as worker:
        wait_until(lambda: statuses()["running"] >= 3)
        [child] = worker.children()
        child.kill()
        all_end(12)
        assert [other.pid for other in worker.children()] != [child.pid]
    check_all()


def test_processes_finish_their_runs_and_exit_after_their_supervisor_died(
    source: str, in_scenario: Project, user: User
) -> None:
    submitted(user, "steady", 4)
    with in_scenario.worker() as worker:
        wait_until(lambda: statuses()["running"] == 4)
        worker.kill_alone()
        wait_until(lambda: not worker.children(), timeout=40)
    assert statuses() == {"completed": 4}


# The servers


def test_a_database_that_is_restarted_under_load_loses_no_run(
    postgres: servers.Postgres,
    valkey: servers.Valkey,
    tmp_path: Path,
    enter: Callable[[Project], None],
    settings: Any,
) -> None:
    with servers.new_database(postgres.url()) as url:
        here = project(url, valkey.port, tmp_path)
        here.tasks = "rows"
        enter(here)
        with dispatching(here, "steady", "8"), here.worker("--concurrency=8"):
            wait_until(lambda: statuses()["running"] == 8)
            postgres.crash()
            time.sleep(1)
            postgres.start()
            all_end(8, seconds=ALLOWED + 10)
        check_all()


def test_runs_are_executed_while_redis_is_away(
    own_valkey: servers.Valkey, tmp_path: Path, enter: Callable[[Project], None]
) -> None:
    with servers.new_database() as url:
        here = project(url, own_valkey.port, tmp_path)
        enter(here)
        with dispatching(here, "steady", "8"), here.worker("--concurrency=3") as worker:
            wait_until(lambda: statuses()["running"] == 3)
            [child] = worker.children()
            own_valkey.kill()
            all_end(8, seconds=ALLOWED + 20)
            own_valkey.start()
            with dispatching(here, "steady", "2"):
                all_end(10, seconds=ALLOWED)
            assert [one.pid for one in worker.children()] == [child.pid]
        check_all()


# Health and changed code


def test_the_health_file_is_fresh_while_all_is_well(
    in_scenario: Project, user: User, tmp_path: Path
) -> None:
    path = tmp_path / "health"
    with in_scenario.worker(f"--health-file={path}") as worker:
        wait_until(path.exists)
        health = json.loads(path.read_text())
        assert health["pid"] == worker.pid
        assert health["processes"] == [child.pid for child in worker.children()]
        first = path.stat().st_mtime
        wait_until(lambda: path.stat().st_mtime > first)
        worker.signal(signal.SIGTERM)
        assert exit_status(worker) == 0
    assert not path.exists()


@contextmanager
def editable(project: Project) -> Iterator[Path]:
    """Give the project, in DEBUG, a module that can be changed."""
    module = project.directory / "editable_settings.py"
    module.write_text("from tests.scenarios.settings import *\nDEBUG = True\n")
    path = f"{project.directory}{os.pathsep}{project.env['PYTHONPATH']}"
    project.settings = "editable_settings"
    project.extra["PYTHONPATH"] = path
    yield module


def test_the_worker_restarts_when_code_changes(
    in_scenario: Project, user: User, settings: Any
) -> None:
    with editable(in_scenario) as module, in_scenario.worker() as worker:
        submitted(user, "waiting")
        wait_until(lambda: statuses()["running"] == 1)
        module.write_text(module.read_text() + "syntax error")
        wait_until(lambda: "Continuing with the old code" in worker.output(), timeout=40)
        fine = module.read_text().removesuffix("syntax error")
        module.write_text(fine + "AGENTIC_DJANGO_AGENT_REGISTRY = 'tests.support.agents.agents'\n")
        wait_until(lambda: worker.output().count("claims runs of") == 2, timeout=60)
        settings.AGENTIC_DJANGO_AGENT_REGISTRY = "tests.support.agents.agents"
        [new] = submitted(user, "echo")
        wait_until(lambda: AgentRun.objects.get(pk=new.pk).status == "completed")
    released = AgentRun.objects.get(agent_key="waiting")  # The new code does not know it.
    assert (released.attempt, released.failures) == (2, 0)
    assert released.error_code == "unknown_agent"


def test_a_wrong_queue_or_backend_is_refused(in_scenario: Project) -> None:
    with pytest.raises(RuntimeError, match="Unknown queue 'nowhere'"):
        in_scenario.manage("agentic_django_worker", "--queue=nowhere")
    in_scenario.tasks = "immediate"
    with pytest.raises(RuntimeError, match="has its own workers"):
        in_scenario.manage("agentic_django_worker")


# A limit


def test_an_agent_at_its_concurrency_limit_does_not_delay_other_agents(
    source: str, in_scenario: Project, user: User
) -> None:
    in_scenario.extra["AGENTIC_TEST_LIMIT"] = json.dumps({"*": 8, "waiting": 1})
    submitted(user, "waiting", 6)
    submitted(user, "steady", 12)
    with in_scenario.worker("--processes=2"):
        wait_until(lambda: statuses()["completed"] == 12, timeout=60)
        assert AgentRun.objects.filter(agent_key="waiting", status="running").count() == 1
        holder = run_rows().filter(agent_key="waiting").running().get()
        cancel_agent_run(holder)
        following = AgentRun.objects.filter(agent_key="waiting", status="running")
        wait_until(lambda: following.exists(), timeout=ALLOWED)
        assert following.count() == 1


def test_a_run_that_is_enqueued_twice_is_executed_once(in_scenario: Project, user: User) -> None:
    made = submitted(user, "steady", 5)
    for run in made:
        queues.enqueue(str(run.pk), run.agent_key)
    in_scenario.manage("agentic_django_worker", "--burst")
    check_all(attempts=1)


# Waiting for a decision


def test_a_waiting_run_resumes_in_another_worker_after_the_decision(
    source: str, in_scenario: Project, user: User
) -> None:
    [run] = submitted(user, "gate")
    with in_scenario.worker():
        wait_until(lambda: statuses() == {"waiting": 1}, timeout=ALLOWED, what=str(statuses()))
    assert calls(run) == 0
    decide_approval(ToolApproval.objects.select_related("run").get(), True, by=user)
    with in_scenario.worker():
        all_end(1)
    assert calls(run) == 1
    [found] = check_all(attempts=2)
    assert found.output == '"Transferred."'


def calls(run: AgentRun) -> int:
    """Return the number of tool calls that were made."""
    return sum(":tool:" in effect.key for effect in effects.read(str(run.pk)))


# SQLite


def test_a_site_with_sqlite_only_executes_many_runs_in_one_process(sqlite_project: Project) -> None:
    sqlite_project.tasks = "rows"
    sqlite_project.settings = "tests.scenarios.settings"
    sqlite_project.extra[effects.FILE] = str(sqlite_project.directory / "effects")
    printed = sqlite_project.python(
        "from django.contrib.auth.models import User\n"
        "from agentic_django.services import submit_agent_run\n"
        "user = User.objects.create_user('ada')\n"
        "for key in ['steady', 'plain', 'parallel'] * 4:\n"
        "    submit_agent_run(owner=user, agent_key=key, input_payload='Begin.')\n"
        "print('submitted')"
    )
    assert printed.split() == ["submitted"]
    sqlite_project.manage("agentic_django_worker", "--burst", "--concurrency=10")
    statuses = sqlite_project.python(
        "from agentic_django.models import AgentRun\n"
        "print(set(AgentRun.objects.values_list('status', 'attempt')))"
    )
    assert statuses.strip() == "{('completed', 1)}"
