"""Hosts differ: in their tests, their transactions, their users, and what they have installed."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from agents import function_tool
from agents.testing import function_call
from asgiref.sync import sync_to_async
from django.contrib.auth.models import Group, User
from django.db import connection, connections, transaction
from django.http import Http404, HttpRequest, HttpResponse
from django.test import Client, TestCase, override_settings
from django.urls import include, path

from agentic_django import tasks
from agentic_django.models import AgentEvent, AgentRun, AgentSession, StepCheckpoint
from agentic_django.runtime import RunContext
from agentic_django.services import submit_agent_run
from tests.settings import ROOT
from tests.support.processes import Project, wait_until
from tests.support.rows import make_run

TOOLS = ["sync_tool", "async_tool"]
ALL_ROWS = [AgentRun, AgentSession, AgentEvent, StepCheckpoint, Group]


def rows() -> int:
    """Return how many rows there are of what runs and their tools write."""
    return sum(model.objects.count() for model in ALL_ROWS)


# A host's own tests


class TestsOfAHost(TestCase):
    """Django's own TestCase, whose transaction never commits, and the Immediate backend."""

    @classmethod
    def setUpTestData(cls) -> None:
        cls.user = User.objects.create_user("ada", password="ada-password")

    def ask(self, agent_key: str, name: str) -> AgentRun:
        """Submit a run, and let the test stand for the commit that carries it out."""
        with self.captureOnCommitCallbacks(execute=True):
            run = submit_agent_run(owner=self.user, input_payload=name, agent_key=agent_key)
        run.refresh_from_db()
        return run

    def check_tool(self, agent_key: str) -> None:
        Group.objects.create(name="not committed")
        run = self.ask(agent_key, "staff")
        assert run.status == "completed", run.error_detail
        assert run.final_output == "Done: 2 groups"
        assert Group.objects.filter(name="staff").exists()

    def test_a_sync_tool_sees_and_writes_what_the_test_does(self) -> None:
        self.check_tool("sync_tool")

    def test_an_async_tool_sees_and_writes_what_the_test_does(self) -> None:
        self.check_tool("async_tool")

    def check_rollback(self, agent_key: str) -> None:
        before = rows()
        with transaction.atomic():
            run = self.ask(agent_key, "staff")
            assert run.status == "completed", run.error_detail
            assert Group.objects.filter(name="staff").exists()
            transaction.set_rollback(True)
        assert rows() == before

    def test_what_a_sync_tool_wrote_vanishes_with_the_transaction(self) -> None:
        self.check_rollback("sync_tool")

    def test_what_an_async_tool_wrote_vanishes_with_the_transaction(self) -> None:
        self.check_rollback("async_tool")

    def test_a_run_is_pending_until_the_transaction_is_committed(self) -> None:
        with self.captureOnCommitCallbacks() as callbacks:
            run = submit_agent_run(owner=self.user, input_payload="Hello", agent_key="echo")
        run.refresh_from_db()
        assert run.status == "pending"
        for callback in callbacks:
            callback()
        run.refresh_from_db()
        assert run.final_output == "You said: Hello"

    def test_a_request_of_the_test_client_carries_a_run_out(self) -> None:
        self.client.force_login(self.user)
        with self.captureOnCommitCallbacks(execute=True):
            made = self.client.post("/agents/runs/", {"input": "staff", "agent_key": "async_tool"})
        assert made.status_code == 201
        shown = self.client.get(made.json()["urls"]["self"]).json()
        assert (shown["status"], shown["output"]) == ("completed", "Done: 1 groups")

    def test_a_failing_run_leaves_the_tests_transaction_usable(self) -> None:
        run = self.ask("broken", "boom")
        assert (run.status, run.error_code) == ("failed", "internal")
        assert not connection.needs_rollback

    async def check_async(self, agent_key: str) -> None:
        run = await sync_to_async(self.ask)(agent_key, "staff")
        assert run.final_output == "Done: 1 groups"
        assert await Group.objects.filter(name="staff").aexists()

    async def test_a_sync_tool_works_in_an_async_test(self) -> None:
        await self.check_async("sync_tool")

    async def test_an_async_tool_works_in_an_async_test(self) -> None:
        await self.check_async("async_tool")


class TestsOfAHostWithRQ(TestCase):
    """Django's TestCase with a queue of RQ that executes jobs at once."""

    @pytest.fixture(autouse=True)
    def rq(self, use_tasks: Any, settings: Any, register: Any) -> None:
        use_tasks("rq")
        settings.RQ_QUEUES = {"default": {**settings.RQ_QUEUES["default"], "ASYNC": False}}
        register(self.work, "default")
        self.depths: list[int] = []

    async def work(self, ctx: RunContext) -> str:
        self.depths.append(await sync_to_async(lambda: len(inspect.stack(0)))())
        return f"Done: {await Group.objects.acount()} groups"

    def test_many_messages_of_a_conversation_are_executed_one_after_another(self) -> None:
        user = User.objects.create_user("ada")
        Group.objects.create(name="not committed")
        with self.captureOnCommitCallbacks(execute=True):
            for number in range(30):
                submit_agent_run(owner=user, input_payload=str(number), session_key="talk")
        outputs = set(AgentRun.objects.values_list("status", "final_output"))
        assert outputs == {("completed", "Done: 1 groups")}
        assert len(self.depths) == 30
        assert max(self.depths) - min(self.depths) < 60
        assert connection.in_atomic_block

    def test_a_failing_run_leaves_the_tests_transaction_usable(self) -> None:
        user = User.objects.create_user("ada")
        with self.captureOnCommitCallbacks(execute=True):
            run = submit_agent_run(owner=user, input_payload="Hello", agent_key="broken")
        run.refresh_from_db()
        assert run.status == "failed"
        assert not connection.needs_rollback


# A caller's own transaction


@pytest.mark.django_db
def test_a_task_within_a_transaction_leaves_its_connection_open_if_other_agents_have_workers(
    user: User, use_tasks: Any, settings: Any
) -> None:
    use_tasks("rq")
    options = settings.RQ_QUEUES["default"]
    settings.RQ_QUEUES = {"default": {**options, "ASYNC": False}, "slow": options}
    settings.AGENTIC_DJANGO_QUEUES = {"research": "slow"}
    run = make_run(user, "pending", agent_key="sync_tool", input_payload="staff")
    tasks.execute.call(str(run.pk))
    run.refresh_from_db()
    assert run.final_output == "Done: 1 groups"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("agent_key", TOOLS)
def test_a_task_within_a_transaction_commits_with_it(user: User, agent_key: str) -> None:
    run = make_run(user, "pending", agent_key=agent_key, input_payload="staff")
    with transaction.atomic():
        tasks.execute.enqueue(str(run.pk))
        assert Group.objects.count() == 1
    run.refresh_from_db()
    assert run.final_output == "Done: 1 groups"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("agent_key", TOOLS)
def test_a_task_within_a_transaction_is_rolled_back_with_it(user: User, agent_key: str) -> None:
    run = make_run(user, "pending", agent_key=agent_key, input_payload="staff")
    before = rows()
    with transaction.atomic():
        tasks.execute.enqueue(str(run.pk))
        assert AgentRun.objects.get().status == "completed"
        assert Group.objects.count() == 1
        transaction.set_rollback(True)
    assert rows() == before
    assert AgentRun.objects.get().status == "pending"
    tasks.execute.enqueue(str(run.pk))
    run.refresh_from_db()
    assert (run.status, run.attempt) == ("completed", 1)


# ATOMIC_REQUESTS


def ask_and_answer(request: HttpRequest) -> HttpResponse:
    """A host's view that writes, and starts a run that needs what it wrote."""
    Group.objects.create(name="of the view")
    run = submit_agent_run(
        owner=request.user, input_payload="of the tool", agent_key=request.GET["agent_key"]
    )
    return HttpResponse(run.status)


def ask_and_fail(request: HttpRequest) -> HttpResponse:
    """A host's view that fails after it started a run."""
    ask_and_answer(request)
    raise Http404


urlpatterns = [
    path("agents/", include("agentic_django.urls")),
    path("answer/", ask_and_answer),
    path("fail/", ask_and_fail),
]


@pytest.fixture
def atomic_requests(transactional_db: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A host each of whose requests is one transaction."""
    monkeypatch.setitem(connections["default"].settings_dict, "ATOMIC_REQUESTS", True)
    with override_settings(ROOT_URLCONF=__name__):
        yield


@pytest.mark.parametrize("agent_key", TOOLS)
@pytest.mark.parametrize("headers", [{}, {"HX-Request": "true"}, {"Accept": "text/html"}])
def test_a_request_in_a_transaction_carries_a_run_out_once_committed(
    atomic_requests: None, client: Client, agent_key: str, headers: dict[str, str]
) -> None:
    data = {"input": "staff", "agent_key": agent_key}
    made = client.post("/agents/runs/", data, headers=headers)
    assert made.status_code == {"HX-Request": 200, "Accept": 303}.get(next(iter(headers), ""), 201)
    run = AgentRun.objects.get()
    assert (run.status, run.final_output) == ("completed", "Done: 1 groups")
    shown = client.get(f"/agents/runs/{run.pk}/", headers={"Accept": "text/html"})
    assert "Done: 1 groups" in shown.text


@pytest.mark.parametrize("agent_key", TOOLS)
def test_a_tool_sees_what_the_view_wrote(
    atomic_requests: None, client: Client, agent_key: str
) -> None:
    assert client.get(f"/answer/?agent_key={agent_key}").text == "pending"
    run = AgentRun.objects.get()
    assert (run.status, run.final_output) == ("completed", "Done: 2 groups")


def test_a_request_that_fails_leaves_no_run(atomic_requests: None, client: Client) -> None:
    assert client.get("/fail/?agent_key=sync_tool").status_code == 404
    assert rows() == 0


def test_a_refused_request_writes_nothing(
    atomic_requests: None, client: Client, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_RATE_LIMIT = "1/d"
    assert client.post("/agents/runs/", {"input": "one"}).status_code == 201
    before = rows()
    for status, data in ((429, {"input": "two"}), (400, {"input": ""})):
        assert client.post("/agents/runs/", data).status_code == status
    assert rows() == before


def test_a_run_in_the_background_waits_for_the_requests_commit(
    atomic_requests: None, client: Client, use_tasks: Callable[[str], None]
) -> None:
    use_tasks("threads")
    assert client.get("/answer/?agent_key=async_tool").text == "pending"
    run = AgentRun.objects.get()
    wait_until(lambda: run.refresh_from_db() or run.is_finished)
    assert run.final_output == "Done: 2 groups"


def test_a_person_stops_and_retries_within_transactions(
    atomic_requests: None, client: Client, user: User
) -> None:
    run = make_run(user, "pending")
    for verb, status in (("cancel", "cancelled"), ("retry", "completed")):
        assert client.post(f"/agents/runs/{run.pk}/{verb}/").status_code == 200
        run.refresh_from_db()
        assert run.status == status


# The asynchronous ORM in tools


@function_tool
async def write_much(name: str) -> str:
    """Use the asynchronous ORM in many ways: create, iterate, and a transaction."""
    await Group.objects.acreate(name=name)

    @transaction.atomic
    def rename() -> None:
        group = Group.objects.select_for_update().get(name=name)
        group.name = f"{name}!"
        group.save()

    await sync_to_async(rename)()
    found = [group.name async for group in Group.objects.filter(name__startswith=name)]
    await Group.objects.filter(name=f"{name}!").aupdate(name=f"{name}?")
    return ",".join([*found, (await Group.objects.aget(name=f"{name}?")).name])


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("backend", ["threads", "immediate"])
def test_parallel_async_tools_use_the_async_orm(
    user: User, use_tasks: Callable[[str], None], scripted: Callable[..., Any], backend: str
) -> None:
    use_tasks(backend)
    names = [f"g{number}" for number in range(4)]
    calls = [function_call("write_much", {"name": name}, call_id=name) for name in names]
    model = scripted("writer", calls, "Written.", tools=[write_much])
    run = submit_agent_run(owner=user, input_payload="Write.", agent_key="writer")
    wait_until(lambda: run.refresh_from_db() or run.is_finished)
    assert run.final_output == "Written.", run.error_detail
    outputs = [item["output"] for item in model.calls[1].input if "output" in item]
    assert outputs == [f"{name}!,{name}?" for name in names]
    assert {group.name for group in Group.objects.all()} == {f"{name}?" for name in names}


# A lean project with users of its own

PEOPLE = '''
"""People, who are known by their address."""

import uuid

from django.contrib.auth.base_user import AbstractBaseUser, BaseUserManager
from django.contrib.auth.models import PermissionsMixin
from django.db import models


class People(BaseUserManager):
    def create_superuser(self, email, password):
        person = self.model(email=email, is_superuser=True, is_staff=True)
        person.set_password(password)
        person.save()
        return person


class Person(AbstractBaseUser, PermissionsMixin):
    id = models.UUIDField(primary_key=True, default=uuid.uuid4)
    email = models.EmailField(unique=True)
    is_staff = models.BooleanField(default=False)
    objects = People()
    USERNAME_FIELD = "email"
'''
SETTINGS = """
from tests.settings import *

AUTH_USER_MODEL = "people.Person"
INSTALLED_APPS = [app for app in INSTALLED_APPS if app != "example.shop"] + ["people"]
MIDDLEWARE = [name for name in MIDDLEWARE if "htmx" not in name]
USE_I18N = False
"""
VISIT = """
import json
from io import StringIO
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.test import Client
from agentic_django.models import AgentRun, AgentSession
from agentic_django.sessions import get_session

html, htmx = {"Accept": "text/html"}, {"HX-Request": "true"}
told = {}


def manage(*command, **options):
    said = StringIO()
    call_command(*command, stdout=said, **options)
    return said.getvalue()


manage("makemigrations", "people")
manage("migrate", verbosity=0)
told["check"] = manage("check")
told["makemigrations"] = manage("makemigrations", dry_run=True)
people = get_user_model().objects
ada, bob = (people.create_superuser(f"{n}@example.com", "secret") for n in ("ada", "bob"))
mine, theirs = Client(), Client()
mine.force_login(ada)
theirs.force_login(bob)

ask = {"session_key": "talk", "agent_key": "sync_tool"}
told["form"] = mine.post("/agents/runs/", {**ask, "input": "one"}, headers=html).status_code
told["htmx"] = mine.post("/agents/runs/", {**ask, "input": "two"}, headers=htmx).text
made = mine.post("/agents/runs/", {**ask, "input": "three"}, "application/json").json()
page = f"/agents/runs/{made['run_id']}/"
told["json"] = made["status"]
told["page"] = mine.get(page, headers=html).text
told["poll"] = mine.get(f"{page}fragment/", headers=htmx).status_code
told["session"] = mine.get("/agents/sessions/talk/", headers=html).text
told["theirs"] = [theirs.get(at).status_code for at in (page, "/agents/sessions/talk/")]
told["admin"] = mine.get("/admin/agentic_django/agentrun/?q=ada@").text
told["owners"] = [str(run.owner_id) == str(ada.pk) for run in AgentRun.objects.all()]
told["principals"] = [s.principal == f"user:{ada.pk}" for s in AgentSession.objects.all()]
told["same session"] = get_session("talk", ada).session == AgentSession.objects.get()
print(json.dumps(told))
"""


@pytest.fixture
def lean_project(tmp_path: Path) -> Project:
    """A project made from nothing: people by UUID, no translations, no HTMX middleware."""
    (tmp_path / "people").mkdir()
    (tmp_path / "people" / "__init__.py").touch()
    (tmp_path / "people" / "models.py").write_text(PEOPLE)
    (tmp_path / "lean.py").write_text(SETTINGS)
    path = {"PYTHONPATH": f"{tmp_path}:{ROOT}"}
    return Project(f"sqlite://{tmp_path / 'lean.sqlite3'}", settings="lean", extra=path)


def test_a_lean_project_with_uuid_users_works(lean_project: Project) -> None:
    told = json.loads(lean_project.python(VISIT))
    assert "no issues (0 silenced)" in told["check"]
    assert told["makemigrations"] == "No changes detected\n"
    assert told["form"] == 303
    assert 'data-status="completed"' in told["htmx"]
    assert told["json"] == "completed"
    assert told["poll"] == 286
    for shown, said in (("htmx", "2"), ("page", "3"), ("session", "1")):
        assert f"Done: {said} groups" in told[shown]
    assert "Send" in told["session"]
    assert told["theirs"] == [404, 404]
    assert "3 runs" in told["admin"]
    assert told["owners"] == [True] * 3
    assert told["principals"] == [True]
    assert told["same session"]
