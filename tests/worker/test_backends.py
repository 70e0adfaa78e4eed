"""A submitted run is executed with each task backend that a host may configure."""

from __future__ import annotations

import json
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
from django.contrib.auth.models import Group, User

from agentic_django import tasks
from agentic_django.concurrency.process_state import process
from agentic_django.engine import queues as queues_
from agentic_django.engine import recovery
from agentic_django.models import AgentEvent, AgentRun
from agentic_django.services import enqueue_agent_run, submit_agent_run
from tests.settings import TASK_BACKENDS
from tests.support.processes import Project, wait_until
from tests.support.rows import make_run, make_session

SUBMIT = """
import os
from django.contrib.auth.models import User
from agentic_django.services import submit_agent_run
user, _ = User.objects.get_or_create(username="ada")
run = submit_agent_run(owner=user, input_payload="staff", agent_key="{agent_key}")
run.refresh_from_db()
print(run.status)
"""

REPORT = """
import json
from functools import partial
from itertools import pairwise
from django.contrib.auth.models import Group
from django.core.serializers.json import DjangoJSONEncoder
from agentic_django.models import AgentEvent, AgentRun
run = AgentRun.objects.latest("created_at")
types = list(run.events.order_by("sequence").values_list("event_type", flat=True))
groups = list(Group.objects.values_list("name", flat=True))
row = {"status": run.status, "output": run.final_output, "attempt": run.attempt,
       "task_id": run.task_id, "types": types, "groups": groups, "error": run.error_detail}
print(json.dumps(row))
"""

LIFE = ["run.started", "tool.called", "tool.output", "message", "run.completed"]


def report(project: Project) -> dict[str, Any]:
    """Return the status and the traces of the newest run of a project."""
    row: dict[str, Any] = json.loads(project.python(REPORT))
    return row


def assert_executed(row: dict[str, Any]) -> None:
    assert row["status"] == "completed", row["error"]
    assert row["output"] == "Done: 1 groups"
    assert [kind for kind in row["types"] if kind in LIFE] == LIFE
    assert row["groups"] == ["staff"]
    assert row["attempt"] == 1


def task() -> Any:
    """Return the task that executes a run. Its type depends on the settings."""
    found: Any = tasks.execute
    return found


def finished(run: AgentRun) -> bool:
    run.refresh_from_db()
    return run.is_finished


# In separate processes: the class of a task is fixed when it is imported


@pytest.mark.parametrize("backend", ["immediate", "django_tasks"])
@pytest.mark.parametrize("agent_key", ["sync_tool", "async_tool"])
def test_an_immediate_backend_executes_a_run_at_once(
    sqlite_project: Project, backend: str, agent_key: str
) -> None:
    sqlite_project.tasks = backend
    assert sqlite_project.python(SUBMIT.format(agent_key=agent_key)) == "completed\n"
    assert_executed(report(sqlite_project))


def test_a_thread_pool_executes_a_run_while_the_submitting_process_continues(
    sqlite_project: Project,
) -> None:
    sqlite_project.tasks = "threads"
    wait = "import time\nwhile not run.is_finished:\n time.sleep(0.05)\n run.refresh_from_db()\n"
    written = sqlite_project.python(SUBMIT.format(agent_key="sync_tool") + wait)
    assert written in ("pending\n", "running\n")
    assert_executed(report(sqlite_project))


@pytest.mark.parametrize("agent_key", ["sync_tool", "async_tool"])
def test_a_worker_of_the_database_backend_executes_a_run(
    sqlite_project: Project, agent_key: str
) -> None:
    sqlite_project.tasks = "database"
    assert sqlite_project.python(SUBMIT.format(agent_key=agent_key)) == "pending\n"
    with sqlite_project.db_worker() as worker:
        wait_until(
            lambda: report(sqlite_project)["status"] == "completed",
            timeout=60,
            what=lambda: worker.output() + str(report(sqlite_project)),
        )
    assert_executed(report(sqlite_project))


def test_a_batch_of_the_database_worker_executes_all_queued_runs(sqlite_project: Project) -> None:
    sqlite_project.tasks = "database"
    sqlite_project.python(SUBMIT.format(agent_key="sync_tool"))
    sqlite_project.manage("db_worker", "--batch", "--no-startup-delay")
    assert_executed(report(sqlite_project))


@pytest.mark.postgres
@pytest.mark.parametrize("agent_key", ["sync_tool", "async_tool"])
def test_a_stock_rq_worker_executes_a_run(project: Project, agent_key: str) -> None:
    with project.rq_worker() as worker:
        assert project.python(SUBMIT.format(agent_key=agent_key)) in ("pending\n", "running\n")
        wait_until(lambda: report(project)["status"] == "completed", timeout=60, what=worker.output)
    assert_executed(report(project))


@pytest.mark.postgres
def test_an_rq_worker_executes_the_runs_of_its_queue_in_order(project: Project) -> None:
    with project.rq_worker("default"):
        row = json.loads(
            project.python(
                "import json\n"
                "from django.contrib.auth.models import User\n"
                "from agentic_django.models import AgentRun\n"
                "from agentic_django.services import submit_agent_run\n"
                "import time\n"
                "user = User.objects.create_user('ada')\n"
                "made = [submit_agent_run(owner=user, input_payload=str(n), agent_key='echo',"
                " session_key='one') for n in range(3)]\n"
                "while AgentRun.objects.exclude(status='completed').exists():\n"
                " time.sleep(0.05)\n"
                "print(json.dumps([AgentRun.objects.get(pk=r.pk).final_output for r in made]))\n"
            )
        )
    assert row == ["You said: 0", "You said: 1", "You said: 2"]


@pytest.mark.parametrize("backend", TASK_BACKENDS)
def test_a_host_without_the_queue_of_the_app_can_import_it_and_gets_a_check(
    sqlite_project: Project, backend: str
) -> None:
    code = (
        "import agentic_django.tasks, agentic_django.services, agentic_django.worker.executor\n"
        "from django.core.checks import run_checks\n"
        "print([m.id for m in run_checks(tags=['agentic_django'])])\n"
    )
    sqlite_project.settings = "tests.settings_queues"
    sqlite_project.tasks = backend
    assert sqlite_project.python(code) == "['agentic_django.E007']\n"


# In this process


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("agent_key", ["sync_tool", "async_tool"])
def test_threads_execute_runs_of_this_process(user: User, use_tasks: Any, agent_key: str) -> None:
    use_tasks("threads")
    made = [
        submit_agent_run(owner=user, input_payload=f"group {n}", agent_key=agent_key)
        for n in range(6)
    ]
    for run in made:
        wait_until(partial(finished, run))
        assert run.status == "completed", run.error_detail
    assert Group.objects.count() == 6


@pytest.mark.django_db(transaction=True)
def test_threads_execute_the_runs_of_a_session_in_order(user: User, use_tasks: Any) -> None:
    use_tasks("threads")
    made = [
        submit_agent_run(owner=user, input_payload=str(n), agent_key="echo", session_key="one")
        for n in range(4)
    ]
    for run in made:
        wait_until(partial(finished, run))
    times: list[Any] = [(run.started_at, run.finished_at) for run in made]
    assert all(before[1] <= after[0] for before, after in pairwise(times))


@pytest.mark.django_db
@pytest.mark.parametrize("backend", ["immediate", "django_tasks"])
def test_an_immediate_run_joins_the_callers_transaction(
    user: User, use_tasks: Any, backend: str, django_capture_on_commit_callbacks: Any
) -> None:
    use_tasks(backend)
    with django_capture_on_commit_callbacks(execute=True):
        run = submit_agent_run(owner=user, input_payload="staff", agent_key="sync_tool")
    assert finished(run)
    assert run.final_output == "Done: 1 groups"


@pytest.mark.django_db
def test_a_run_that_the_host_created_and_enqueued_is_executed(
    user: User, django_capture_on_commit_callbacks: Any
) -> None:
    run = make_run(user, "pending", session=make_session(user))
    with django_capture_on_commit_callbacks(execute=True):
        enqueue_agent_run(str(run.id))
    assert finished(run)
    assert run.final_output == "You said: Hello"


@pytest.mark.django_db
def test_a_run_that_is_delivered_twice_is_executed_once(
    user: User, django_capture_on_commit_callbacks: Any
) -> None:
    run = make_run(user, "pending")
    with django_capture_on_commit_callbacks(execute=True):
        for _ in range(2):
            task().enqueue(str(run.pk))
    assert AgentEvent.objects.filter(event_type="run.completed").count() == 1
    assert finished(run)
    assert run.attempt == 1


@pytest.mark.django_db
def test_the_delivery_of_a_deleted_run_succeeds_without_effect(user: User) -> None:
    result = task().enqueue("00000000-0000-0000-0000-000000000000")
    assert result.status == "SUCCESSFUL"


@pytest.mark.parametrize("backend", TASK_BACKENDS)
def test_the_task_belongs_to_the_backend_that_is_configured(use_tasks: Any, backend: str) -> None:
    use_tasks(backend)
    module = TASK_BACKENDS[backend]["BACKEND"].partition(".")[0]
    assert type(task().get_backend()).__module__.partition(".")[0] == module


def test_the_task_is_enqueued_on_the_backend_and_queue_of_the_settings(settings: Any) -> None:
    settings.TASKS = {
        "default": TASK_BACKENDS["immediate"],
        "agents": {**TASK_BACKENDS["immediate"], "QUEUES": ["runs", "slow"]},
    }
    settings.AGENTIC_DJANGO_TASK_BACKEND = "agents"
    settings.AGENTIC_DJANGO_QUEUES = {"*": "runs", "research": "slow"}
    made = queues_.task_for_agent(None)
    assert (made.backend, made.queue_name) == ("agents", "runs")
    assert queues_.queue_for_agent("research") == "slow"
    assert queues_.queue_for_agent("echo") == "runs"


@pytest.mark.parametrize(
    ("queues", "key", "queue"),
    [
        ({}, "echo", "default"),
        ({"*": "runs"}, "echo", "runs"),
        ({"echo": "fast"}, "echo", "fast"),
        ({"echo": "fast"}, "other", "default"),
    ],
)
def test_an_agent_without_a_queue_of_its_own_uses_the_queue_for_all_others(
    settings: Any, queues: dict[str, str], key: str, queue: str
) -> None:
    settings.AGENTIC_DJANGO_QUEUES = queues
    assert queues_.queue_for_agent(key) == queue


@pytest.mark.django_db
def test_no_sweeper_thread_starts_where_tasks_execute_immediately() -> None:
    recovery.start_sweeper()
    assert not process.get(recovery.Sweeper).is_running
