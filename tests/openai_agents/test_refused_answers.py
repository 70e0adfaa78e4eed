"""Answers that the SDK or a guardrail refuses, and turns that run out: retrying continues."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import agents
import pytest
from agents import Agent, Runner, function_tool
from agents.testing import ScriptedModel, assistant_message
from pydantic import BaseModel

from agentic_django.models import AgentRun
from agentic_django.presentation import wording
from agentic_django.services import retry_agent_run
from tests.support.agents import USAGE, call_tool
from tests.support.attempts import AWAY, finish

pytestmark = pytest.mark.django_db

type Carry = Callable[..., AgentRun]


class Weather(BaseModel):
    """An output type."""

    celsius: float


def retried(run: AgentRun) -> AgentRun:
    """Retry a run, and execute it to its end."""
    retry_agent_run(run)
    return finish(run)


@function_tool
def look() -> str:
    """Look."""
    return "sunny"


def test_turns_are_counted_from_the_retry(scripted: Any, carry: Carry) -> None:
    steps = [call_tool("look", call_id=f"c{n}") for n in range(5)]
    model = scripted("default", *steps, "Done.", tools=[look])
    run = carry(config={"max_turns": 2})
    assert run.error_code == "max_turns"
    assert len(model.calls) == 2
    assert retried(run).error_code == "max_turns"
    assert len(model.calls) == 4
    assert retried(run).final_output == "Done."
    assert len(model.calls) == 6


def test_turns_of_an_agent_that_a_tool_runs_are_counted_from_the_retry(
    scripted: Any, carry: Carry
) -> None:
    steps = [call_tool("look", call_id=f"c{n}") for n in range(3)]
    inner_model = ScriptedModel([*steps, [assistant_message("Sunny.")]], default_usage=USAGE)
    inner = Agent(name="inner", model=inner_model, tools=[look])

    @function_tool(failure_error_function=None)
    async def ask() -> str:
        """Ask another."""
        return str((await Runner.run(inner, "?", max_turns=2)).final_output)

    scripted("default", call_tool("ask"), "Done.", tools=[ask])
    run = carry()
    assert run.error_code == "max_turns"
    assert retried(run).final_output == "Done."
    assert len(inner_model.calls) == 4


def test_an_attempt_that_is_not_a_retry_does_not_count_turns_anew(
    scripted: Any, carry: Carry
) -> None:
    steps = [call_tool("look"), AWAY, call_tool("look", call_id="c2"), "Never."]
    scripted("default", *steps, tools=[look])
    assert carry(config={"max_turns": 2}).error_code == "max_turns"


REFUSED: dict[str, tuple[Any, str]] = {
    "an unknown tool": (call_tool("fly"), "unknown_tool"),
    "an apology": ("sorry", "invalid_output"),
    "fenced JSON": ('```json\n{"celsius": 21}\n```', "invalid_output"),
    "a missing field": ("{}", "invalid_output"),
}


@pytest.mark.parametrize(("answer", "code"), REFUSED.values(), ids=REFUSED.keys())
def test_an_answer_that_failed_the_run_is_asked_for_anew(
    scripted: Any, carry: Carry, answer: Any, code: str
) -> None:
    steps = [call_tool("look"), answer, '{"celsius": 21}']
    calls: list[int] = []

    @function_tool(name_override="look")
    def noted() -> str:
        """Look."""
        calls.append(1)
        return "sunny"

    model = scripted("default", *steps, tools=[noted], output_type=Weather)
    run = carry()
    assert run.error_code == code
    assert wording.advice(run) == "Retry asks the model again."
    assert retried(run).final_output == {"celsius": 21.0}
    assert len(model.calls) == 3
    assert calls == [1]
    assert run.usage["total_tokens"] == 3 * 15  # The refused answer was paid for, too.


def test_an_answer_that_an_output_guardrail_blocks_is_asked_for_anew(
    scripted: Any, carry: Carry
) -> None:
    @agents.output_guardrail
    async def check(context: Any, agent: Any, output: Any) -> agents.GuardrailFunctionOutput:
        return agents.GuardrailFunctionOutput(None, tripwire_triggered="SECRET" in output)

    model = scripted("default", "SECRET", "Fine.", output_guardrails=[check])
    run = carry()
    assert run.error_code == "guardrail"
    assert retried(run).final_output == "Fine."
    assert len(model.calls) == 2


def test_an_answer_that_fails_an_agent_of_a_tool_is_asked_for_anew(
    scripted: Any, carry: Carry
) -> None:
    answers = [[assistant_message("sorry")], [assistant_message('{"celsius": 21}')]]
    inner_model = ScriptedModel(answers, default_usage=USAGE)
    inner = Agent(name="inner", model=inner_model, output_type=Weather)

    @function_tool(failure_error_function=None)
    async def ask() -> str:
        """Ask another."""
        return str((await Runner.run(inner, "?")).final_output.celsius)

    model = scripted("default", call_tool("ask"), "Done.", tools=[ask])
    run = carry()
    assert run.error_code == "invalid_output"
    assert retried(run).final_output == "Done."
    assert model.calls[-1].input[-1]["output"] == "21.0"


def test_an_answer_that_the_hosts_code_handles_is_not_asked_for_anew(
    scripted: Any, carry: Carry
) -> None:
    answers = [[assistant_message("sorry")], [assistant_message('{"celsius": 21}')]]
    inner_model = ScriptedModel(answers, default_usage=USAGE)
    inner = Agent(name="inner", model=inner_model, output_type=Weather)

    @function_tool(failure_error_function=None)
    async def ask() -> str:
        """Ask another, twice if needed."""
        try:
            await Runner.run(inner, "?")
        except agents.ModelBehaviorError:
            await Runner.run(inner, "?")
        if len(inner_model.calls) == 2 and not failed:
            failed.append(1)
            raise AWAY
        return "asked"

    failed: list[int] = []
    scripted("default", call_tool("ask"), "Done.", tools=[ask])
    assert carry().final_output == "Done."
    assert len(inner_model.calls) == 2
