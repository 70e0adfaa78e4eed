"""Agents and models that are called at once: each gets its own answer again, in any order."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import agents
import pytest
from agents import Agent, Runner, function_tool
from agents.testing import assistant_message, function_call

from agentic_django.models import AgentRun
from agentic_django.openai_agents.providers import get_model
from agentic_django.runtime import RunContext
from agentic_django.runtime.model_calls import generate
from agentic_django.services import decide_approval
from tests.support.agents import answering, call_tool, is_tool_output, last_text
from tests.support.attempts import AWAY, finish, payloads

pytestmark = [pytest.mark.django_db, pytest.mark.not_replayed]

type Carry = Callable[..., AgentRun]
type Register = Callable[..., None]


class Attempts:
    """Counts attempts of a piece of code, and says in which order it works in each of them."""

    def __init__(self) -> None:
        self.count = 0

    def order(self, *given: str) -> list[str]:
        """Return what is given, turned round in every second attempt."""
        self.count += 1
        return list(given) if self.count % 2 else list(given)[::-1]

    def check(self) -> None:
        """Fail the first attempt."""
        if self.count == 1:
            raise AWAY


def answers_of(seen: list[str]) -> Any:
    """Return a model that repeats its question; each question is noted."""

    def respond(call: Any) -> Any:
        seen.append(last_text(call))
        return [assistant_message(f"answer to {last_text(call)}")]

    return answering(respond)


def test_a_tool_that_gathers_agents_gets_their_own_answers_in_any_order(
    scripted: Any, carry: Carry
) -> None:
    seen: list[str] = []
    sub, attempts = Agent(name="sub", model=answers_of(seen)), Attempts()

    @function_tool(failure_error_function=None)
    async def research() -> str:
        """Research."""
        cities = attempts.order("Rome", "Oslo")
        results = await asyncio.gather(*(Runner.run(sub, city) for city in cities))
        attempts.check()
        found = {city: r.final_output for city, r in zip(cities, results, strict=True)}
        return f"{found['Rome']}, {found['Oslo']}"

    scripted("default", call_tool("research"), "Done.", tools=[research])
    run = carry()
    assert (run.final_output, run.attempt) == ("Done.", 2)
    [output] = payloads(run, "tool.output")
    assert output["output"] == "answer to Rome, answer to Oslo"
    assert seen == ["Rome", "Oslo"]
    assert payloads(run, "log") == []


def test_a_guardrail_that_gathers_agents_gets_their_own_answers_in_any_order(
    scripted: Any, carry: Carry
) -> None:
    seen: list[str] = []
    sub, attempts = Agent(name="sub", model=answers_of(seen)), Attempts()
    found: list[dict[str, str]] = []

    @agents.input_guardrail(run_in_parallel=False)
    async def check(context: Any, agent: Any, given: Any) -> agents.GuardrailFunctionOutput:
        topics = attempts.order("money", "health")
        results = await asyncio.gather(*(Runner.run(sub, topic) for topic in topics))
        attempts.check()
        found.append({t: r.final_output for t, r in zip(topics, results, strict=True)})
        return agents.GuardrailFunctionOutput(None, tripwire_triggered=False)

    scripted("default", "Hello.", input_guardrails=[check])
    assert carry().final_output == "Hello."
    assert found == [{"money": "answer to money", "health": "answer to health"}]
    assert seen == ["money", "health"]


def test_gathered_agents_continue_from_their_own_states(scripted: Any, carry: Carry) -> None:
    def respond(call: Any) -> Any:
        if is_tool_output(call):
            return [assistant_message(f"{call.input[0]['content']}: {last_text(call)}")]
        return [function_call("look", {"city": last_text(call)}, call_id=f"c-{last_text(call)}")]

    @function_tool(needs_approval=True)
    def look(city: str) -> str:
        """Look."""
        return f"sunny in {city}"

    sub, attempts = Agent(name="sub", model=answering(respond), tools=[look]), Attempts()

    @function_tool(failure_error_function=None)
    async def research() -> str:
        """Research, and approve by code."""
        cities = attempts.order("Rome", "Oslo")
        first = await asyncio.gather(*(Runner.run(sub, city) for city in cities))
        states = [result.to_state() for result in first]
        for state in states:
            for item in state.get_interruptions():
                state.approve(item)
        results = await asyncio.gather(*(Runner.run(sub, state) for state in states))
        attempts.check()
        return ", ".join(sorted(result.final_output for result in results))

    scripted("default", call_tool("research"), "Done.", tools=[research])
    run = carry()
    assert run.final_output == "Done."
    outputs = [o["output"] for o in payloads(run, "tool.output") if o["tool"] == "research"]
    assert outputs == ["Oslo: sunny in Oslo, Rome: sunny in Rome"]


def test_models_that_tools_call_get_their_own_answers_when_one_tool_is_recorded(
    scripted: Any, carry: Carry
) -> None:
    seen: list[str] = []
    inner, failed = answers_of(seen), []

    @function_tool(failure_error_function=None)
    async def ask(city: str) -> str:
        """Ask a model directly. The second call fails once, after the model has answered."""
        answer = await generate([{"role": "user", "content": "Weather?"}], using=inner)
        if city == "Oslo" and not failed:
            await asyncio.sleep(0.1)  # Until the other call is recorded.
            failed.append(1)
            raise AWAY
        return f"{city}: {answer.message.content}"

    both = [function_call("ask", {"city": c}, call_id=f"c-{c}") for c in ("Rome", "Oslo")]
    model = scripted("default", both, "Done.", tools=[ask])
    run = carry()
    assert (run.final_output, run.attempt) == ("Done.", 2)
    assert len(model.calls) == 2
    assert len(seen) == 2  # Each tool's own question was put once.


def test_the_same_question_with_other_options_is_another_question(
    register: Register, carry: Carry
) -> None:
    attempts = Attempts()

    def respond(call: Any) -> Any:
        return [assistant_message(f"at {call.model_settings.temperature}")]

    model = answering(respond)

    async def run(ctx: RunContext) -> dict[str, Any]:
        asked = [{"role": "user", "content": "Write."}]
        temperatures = attempts.order("0.1", "0.9")
        found = await asyncio.gather(
            *(ctx.generate(asked, model=model, temperature=float(t)) for t in temperatures)
        )
        attempts.check()
        return {t: a.message.content for t, a in zip(temperatures, found, strict=True)}

    register(run)
    assert carry("work").final_output == {"0.1": "at 0.1", "0.9": "at 0.9"}


def test_a_model_of_the_app_may_be_an_agents_model(scripted: Any, carry: Carry) -> None:
    steps = [call_tool("look"), AWAY, "Seen."]
    calls: list[int] = []

    @function_tool
    def look() -> str:
        """Look."""
        calls.append(1)
        return "sunny"

    model = scripted("default", *steps, tools=[look])
    scripted("default", *steps, tools=[look], model=get_model(model))
    assert carry().final_output == "Seen."
    assert calls == [1]


def test_an_approval_of_a_gathered_agents_call_belongs_to_its_own_agent(
    register: Register, carry: Carry
) -> None:
    attempts = Attempts()
    looked: list[str] = []

    def respond(call: Any) -> Any:
        if is_tool_output(call):
            return [assistant_message(last_text(call))]
        return [function_call("look", {"city": last_text(call)}, call_id="c1")]

    @function_tool(needs_approval=True)
    def look(city: str) -> str:
        """Look."""
        looked.append(city)
        return f"sunny in {city}"

    sub = Agent(name="sub", model=answering(respond), tools=[look])

    async def run(ctx: RunContext) -> dict[str, Any]:
        cities = attempts.order("Rome", "Oslo")
        found = await asyncio.gather(*(ctx.run_agent(sub, city) for city in cities))
        return dict(zip(cities, found, strict=True))

    register(run)
    waiting = carry("work")
    for approval in waiting.approvals.all():
        decide_approval(approval, approve=approval.arguments["city"] == "Rome")
    found = finish(waiting).final_output
    assert looked == ["Rome"]
    assert found["Rome"] == "sunny in Rome"
    assert "sunny" not in found["Oslo"]
