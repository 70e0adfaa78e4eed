"""Pipelines that trusted code submits as data: only of modules that are listed."""

from __future__ import annotations

import logging as logging
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client

from agentic_django.exceptions import BadInput, BadSetting, Conflict, NotSerializable, UnknownAgent
from agentic_django.models import AgentRun, AgentSession
from agentic_django.runtime import RunContext
from agentic_django.services import (
    enqueue_agent_run,
    retry_agent_run,
    submit_agent_run,
    submit_pipeline_run,
)
from agentic_django.steps import submitted
from tests.support.attempts import finish, payloads
from tests.support.rows import make_session

pytestmark = pytest.mark.django_db(transaction=True)

HERE = "tests.steps.test_submitted"
tries: list[str] = []


async def fetch(ctx: RunContext, state: dict[str, Any]) -> int:
    """Fetch what the params say."""
    state["rows"] = state["count"] * 2
    return int(state["count"])


def save(ctx: RunContext, state: dict[str, Any]) -> int:
    """Save, synchronously."""
    return int(state["rows"])


async def flaky(ctx: RunContext, state: dict[str, Any]) -> str:
    """Fail at the first call."""
    tries.append("flaky")
    if len(tries) == 1:
        raise ValueError("no")
    return "ok"


@pytest.fixture(autouse=True)
def listed(settings: Any, no_queue: None) -> None:
    tries.clear()
    settings.AGENTIC_DJANGO_STEP_MODULES = [HERE]


def step(name: str, **options: Any) -> dict[str, Any]:
    """Return a step's definition; its function has its name."""
    return {"name": name, "module": HERE, "function": name, **options}


def submit(user: User | None, *steps: Any, **options: Any) -> AgentRun:
    """Submit steps."""
    return submit_pipeline_run(owner=user, steps=steps, **options)


def test_submitted_steps_are_executed_by_a_worker(user: User) -> None:
    run = submit(user, step("fetch"), step("save"), params={"count": 3}, metadata={"by": "me"})
    assert (run.status, run.session, run.owner) == ("pending", None, user)
    run = finish(run)
    assert run.final_output == {"fetch": 3, "save": 6}
    assert run.metadata["by"] == "me"


def test_a_submitted_step_may_have_all_options(user: User) -> None:
    options = {"retries": 1, "retry_delay": 0, "timeout": 5, "description": "Try", "checkpoint": 0}
    run = finish(submit(user, step("flaky", **options)))
    assert run.final_output == {"flaky": "ok"}
    assert payloads(run, "step.started")[0]["description"] == "Try"
    assert payloads(run, "step.started")[0]["max_attempts"] == 2
    assert not run.checkpoints.exists()


@pytest.mark.not_replayed
def test_a_retry_of_a_failed_pipeline_continues_from_its_journal(user: User) -> None:
    run = finish(submit(user, step("fetch"), step("flaky"), params={"count": 1}))
    assert run.status == "failed"
    retry_agent_run(run)
    assert finish(run).final_output == {"fetch": 1, "flaky": "ok"}
    assert len(payloads(run, "step.skipped")) == 1


def test_the_owner_may_retry_a_pipeline_on_the_page(user: User, client: Client) -> None:
    run = finish(submit(user, step("flaky")))
    html = client.get(f"/agents/runs/{run.pk}/fragment/").content.decode()
    assert "Pipeline" in html
    assert client.post(f"/agents/runs/{run.pk}/retry/").status_code == 200
    assert finish(run).status == "completed"


def test_a_pipeline_may_belong_to_a_conversation(user: User) -> None:
    first = submit(user, step("flaky"), session_key="talk", input_payload="Report.")
    second = submit(user, step("flaky", retries=1), session_key="talk", input_payload="Again.")
    assert (first.position, second.position) == (1, 2)
    finish(first)
    finish(second)
    session = AgentSession.objects.get(session_key="talk")
    said = [{"role": "user", "content": "Again."}]
    assert session.get_message_history() == said
    third = submit_agent_run(owner=user, input_payload="Thanks.", session_key="talk")
    assert third.agent_key == "default", "The conversation got an agent that nobody can run."


def test_a_pipeline_joins_an_existing_conversation(user: User) -> None:
    session = make_session(user, session_key="talk", agent_key="echo", run_count=4)
    run = submit(user, step("flaky"), session_key="talk", input_payload="Report.")
    assert (run.session, run.position) == (session, 5)
    session.refresh_from_db()
    assert session.agent_key == "echo"


def test_a_pipeline_may_be_enqueued_again(user: User) -> None:
    enqueue_agent_run(submit(user, step("flaky")).pk)


def test_a_pipeline_may_have_no_owner() -> None:
    assert finish(submit(None, step("flaky", retries=1, retry_delay=0))).status == "completed"


@pytest.mark.parametrize(
    ("steps", "error", "text"),
    [
        ([], BadInput, "steps: Give at least one step"),
        ([{"name": "a"}], BadInput, r"steps\.0\.module"),
        ([step("fetch"), step("save", retries=-1)], BadInput, r"steps\.1\.retries"),
        ([step("fetch", retry_delay=-1)], BadInput, "retry_delay"),
        ([step("fetch", timeout=0)], BadInput, "timeout"),
        ([step("fetch", colour="red")], BadInput, "colour"),
        (["fetch"], BadInput, r"steps\.0"),
        ([step("fetch"), step("fetch")], BadSetting, "Two steps are called 'fetch'"),
        ([step("missing")], BadSetting, "Step 'missing': .*has no attribute 'missing'"),
        ([step("HERE")], BadSetting, "is not a function"),
        ([step("logging.getLogger")], BadSetting, "no attribute 'logging.getLogger'"),
        ([step("fetch", module="os", function="system")], BadSetting, "Add the module"),
        ([step("fetch", module="tests", function="test_submitted.fetch")], BadSetting, "Add the"),
    ],
)
def test_invalid_definitions_are_refused_and_nothing_is_written(
    user: User, steps: list[Any], error: type[Exception], text: str
) -> None:
    with pytest.raises(error, match=text):
        submit(user, *steps)
    assert not AgentRun.objects.exists()
    assert not AgentSession.objects.exists()


def test_an_allowed_package_does_not_allow_its_modules(user: User, settings: Any) -> None:
    settings.AGENTIC_DJANGO_STEP_MODULES = ["tests"]
    with pytest.raises(BadSetting, match=r"no attribute 'test_submitted\.fetch'"):
        submit(user, {"name": "a", "module": "tests", "function": "test_submitted.fetch"})


def test_a_missing_module_fails_with_a_clear_error(user: User, settings: Any) -> None:
    settings.AGENTIC_DJANGO_STEP_MODULES = ["no.such.module"]
    with pytest.raises(BadSetting, match="Step 'a': No module named 'no'"):
        submit(user, {"name": "a", "module": "no.such.module", "function": "fetch"})


def test_no_module_is_allowed_by_default(user: User, settings: Any) -> None:
    del settings.AGENTIC_DJANGO_STEP_MODULES
    with pytest.raises(BadSetting, match="AGENTIC_DJANGO_STEP_MODULES"):
        submit(user, step("fetch"))


def test_a_worker_refuses_a_module_that_is_no_longer_allowed(user: User, settings: Any) -> None:
    run = submit(user, step("fetch"))
    settings.AGENTIC_DJANGO_STEP_MODULES = []
    run = finish(run)
    assert (run.status, run.error_code) == ("failed", "bad_setting")
    assert payloads(run, "step.started") == []


def test_params_that_are_not_json_are_refused(user: User) -> None:
    with pytest.raises(NotSerializable):
        submit(user, step("fetch"), params={"a": object()})


def test_a_client_cannot_submit_steps(user: User, client: Client) -> None:
    body = {"input": "x", "agent_key": ".pipeline", "metadata": {"steps": [step("fetch")]}}
    response = client.post("/agents/runs/", body, content_type="application/json")
    assert response.status_code == 400
    assert not AgentRun.objects.exists()
    with pytest.raises(UnknownAgent):
        submit_agent_run(
            owner=user, input_payload="x", agent_key=".pipeline", metadata={"steps": []}
        )


def test_a_completed_pipeline_cannot_be_retried(user: User) -> None:
    run = finish(submit(user, step("flaky", retries=1, retry_delay=0)))
    with pytest.raises(Conflict):
        retry_agent_run(run)


def test_the_fragment_of_a_pipeline_without_conversation_is_shown(
    user: User, client: Client
) -> None:
    run = submit(user, step("flaky", retries=1, retry_delay=0, description="Tries things"))
    for _ in range(2):
        page = client.get(f"/agents/runs/{run.pk}/")
        fragment = client.get(f"/agents/runs/{run.pk}/fragment/")
        assert (page.status_code, fragment.status_code) == (200, 200)
        assert "Pipeline" in fragment.content.decode()
        run.refresh_from_db()
        if not run.is_finished:
            finish(run)


@pytest.mark.parametrize(
    "changed",
    [{"description": "a\0"}, {"name": "a\0"}, {"name": "\ud800"}, {"timeout": float("inf")}],
)
def test_a_value_that_no_database_can_store_is_refused_and_nothing_is_written(
    user: User, changed: Any
) -> None:
    with pytest.raises((BadInput, BadSetting)):
        submit(user, {**step("fetch"), **changed})
    assert not AgentRun.objects.exists()


def test_a_setting_that_is_a_text_allows_no_part_of_it(settings: Any) -> None:
    settings.AGENTIC_DJANGO_STEP_MODULES = "tests.support.agents"
    with pytest.raises(BadSetting, match="may not be submitted"):
        submitted.validated_steps([{"name": "a", "module": "agents", "function": "Agent"}])
