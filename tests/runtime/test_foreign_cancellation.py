"""A CancelledError that no cancellation of the run has caused is an ordinary failure."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any

import pytest
from agents import Agent, GuardrailFunctionOutput, function_tool, input_guardrail
from agents.testing import ScriptedModel, assistant_message, function_call
from django.contrib.auth.models import User

from agentic_django.models import AgentRun, StepCheckpoint
from agentic_django.runtime import RunContext
from agentic_django.services import submit_agent_run
from agentic_django.steps import Pipeline, Step

pytestmark = pytest.mark.django_db(transaction=True)


async def raise_it(*_: Any) -> Any:
    raise asyncio.CancelledError("of a library")


async def await_a_cancelled_task(*_: Any) -> Any:
    task = asyncio.create_task(asyncio.sleep(60))
    task.cancel("of a library")
    await task


async def cancel_own_task(*_: Any) -> Any:
    task = asyncio.current_task()
    assert task is not None
    task.cancel("of a library")
    await asyncio.sleep(60)


async def calling(way: Way, context: Any, agent: Any) -> str:
    await way()
    raise AssertionError


WAYS = [raise_it, await_a_cancelled_task, cancel_own_task]
type Way = Callable[..., Coroutine[Any, Any, Any]]


@pytest.fixture
def execute(user: User, register: Callable[..., None]) -> Callable[[Any], AgentRun]:
    """Execute a run of some work under the Immediate backend."""

    def execute(work: Any) -> AgentRun:
        register(work)
        run = submit_agent_run(owner=user, input_payload="Hello", agent_key="work")
        run.refresh_from_db()
        return run

    return execute


def check_failed(run: AgentRun) -> None:
    assert (run.status, run.attempt) == ("failed", 1)
    assert "CancelledError: of a library" in run.error_detail
    assert __file__ in run.error_detail


@pytest.mark.parametrize("way", WAYS)
def test_function_fails(execute: Callable[[Any], AgentRun], way: Way) -> None:
    async def work(ctx: RunContext) -> None:
        await way()

    run = execute(work)
    check_failed(run)
    assert run.error_code == "internal"


@pytest.mark.parametrize("way", WAYS)
def test_step_fails_after_its_retries(execute: Callable[[Any], AgentRun], way: Way) -> None:
    calls = []

    async def cancelled(ctx: Any, state: Any) -> None:
        calls.append(1)
        await way()

    run = execute(lambda: Pipeline([Step("first", cancelled, retries=1, retry_delay=0.01)]))
    check_failed(run)
    assert run.error_code == "step_failed"
    assert len(calls) == 2


def test_factory_fails(execute: Callable[[Any], AgentRun]) -> None:
    def factory() -> Any:
        raise asyncio.CancelledError("of a library")

    check_failed(execute(factory))


def agent(**options: Any) -> Agent[Any]:
    calls = [[function_call("cancelled", {}, call_id="1")]] if "tools" in options else []
    model = ScriptedModel([*calls, [assistant_message("Ok")]])
    return Agent(name="work", model=model, **options)


@pytest.mark.parametrize("way", [raise_it, await_a_cancelled_task])
def test_tool_fails(execute: Callable[[Any], AgentRun], way: Way) -> None:
    async def cancelled() -> str:
        """Be cancelled."""
        await way()
        return "unreachable"

    tool = function_tool(cancelled, failure_error_function=None)
    check_failed(execute(lambda: agent(tools=[tool])))


@pytest.mark.parametrize("way", [raise_it, await_a_cancelled_task])
def test_guardrail_fails(execute: Callable[[Any], AgentRun], way: Way) -> None:
    @input_guardrail
    async def check(*_: Any) -> GuardrailFunctionOutput:
        await way()
        raise AssertionError

    check_failed(execute(lambda: agent(input_guardrails=[check])))


def test_tool_that_cancels_its_own_task_fails(execute: Callable[[Any], AgentRun]) -> None:
    async def cancelled() -> str:
        """Be cancelled."""
        await cancel_own_task()
        return "unreachable"

    tool = function_tool(cancelled, failure_error_function=None)
    run = execute(lambda: agent(tools=[tool]))
    assert (run.status, run.error_code, run.attempt) == ("failed", "internal", 1)


@pytest.mark.parametrize("way", WAYS)
def test_callback_of_an_agent_fails(execute: Callable[[Any], AgentRun], way: Way) -> None:
    check_failed(execute(lambda: agent(instructions=partial(calling, way))))


@pytest.mark.not_replayed  # The scripted model starts its script again in each attempt.
def test_model_sees_the_cancellation_of_a_tool_as_its_error(
    execute: Callable[[Any], AgentRun],
) -> None:
    async def cancelled() -> str:
        """Be cancelled."""
        await raise_it()
        return "unreachable"

    run = execute(lambda: agent(tools=[function_tool(cancelled)]))
    assert StepCheckpoint.objects.filter(run=run, kind="tool").count() == 1
    assert (run.status, run.final_output) == ("completed", "Ok"), run.error_detail
    assert "error" in run.events.get(event_type="tool.output").payload["output"]


@pytest.mark.parametrize("way", [raise_it, await_a_cancelled_task])
def test_inline_run_fails(way: Way) -> None:
    async def host() -> int:
        with pytest.raises(Exception, match="cancelled"):
            async with RunContext.open():
                await way()
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    assert asyncio.run(host()) == 0
    check_failed(AgentRun.objects.get())
