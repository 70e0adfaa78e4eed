"""Synchronous callbacks of a host, each of which uses the ORM, as its synchronous tools may."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
from agents import (
    Agent,
    GuardrailFunctionOutput,
    InputGuardrail,
    OutputGuardrail,
    RunConfig,
    Runner,
    ToolGuardrailFunctionOutput,
    ToolInputGuardrail,
    ToolOutputGuardrail,
    ToolsToFinalOutputResult,
    function_tool,
    handoff,
)
from agents.testing import ScriptedModel, assistant_message, function_call
from django.contrib.auth.models import Group
from django.core.exceptions import SynchronousOnlyOperation
from django.db import OperationalError

from agentic_django.models import AgentRun
from agentic_django.services import decide_approval
from tests.support.agents import SCRIPTED, call_tool
from tests.support.attempts import finish

pytestmark = pytest.mark.django_db

type Carry = Callable[..., AgentRun]

CALL = call_tool("note", text="a")


def called(value: Any, *_: Any, **__: Any) -> Any:
    """Write a row, as any callback of a host may, and return a value."""
    Group.objects.create(name=f"called {Group.objects.count()}")
    return value


def fails(text: str) -> str:
    """Fail."""
    raise ValueError(text)


def note(text: str) -> str:
    """Note a text."""
    return f"noted {text}"


def two(value: Any) -> Callable[..., Any]:
    """Return a callback with two parameters, as the SDK demands of some."""

    def callback(context: Any, other: Any) -> Any:
        return called(value)

    return callback


def tool(function: Callable[..., Any] = note, **options: Any) -> Any:
    """Return a tool with the name that the script calls."""
    return function_tool(function, name_override="note", **options)


def allowed() -> Any:
    return ToolGuardrailFunctionOutput.allow()


def guarded(kind: Any) -> Any:
    """Return a tool with a guardrail of this kind."""
    guardrail = kind(guardrail_function=lambda data: called(allowed()))
    field = "tool_input_guardrails" if kind is ToolInputGuardrail else "tool_output_guardrails"
    made = tool()
    setattr(made, field, [guardrail])
    return made


def passed() -> GuardrailFunctionOutput:
    return GuardrailFunctionOutput(output_info=None, tripwire_triggered=False)


def three(context: Any, agent: Any, text: Any) -> Any:
    return called(passed())


AGENTS: dict[str, dict[str, Any]] = {
    "instructions": {"instructions": two("Be kind."), "tools": [tool()]},
    "is_enabled": {"tools": [tool(is_enabled=two(True))]},
    "needs_approval": {"tools": [tool(needs_approval=partial(called, False))]},
    "failure_error_function": {"tools": [tool(fails, failure_error_function=two("It failed."))]},
    "tool input guardrail": {"tools": [guarded(ToolInputGuardrail)]},
    "tool output guardrail": {"tools": [guarded(ToolOutputGuardrail)]},
    "input guardrail": {"tools": [tool()], "input_guardrails": [InputGuardrail(three)]},
    "output guardrail": {"tools": [tool()], "output_guardrails": [OutputGuardrail(three)]},
    "tool_use_behavior": {
        "tools": [tool()],
        "tool_use_behavior": partial(called, ToolsToFinalOutputResult(True, "Done.")),
    },
}


@pytest.mark.parametrize("name", AGENTS)
def test_a_synchronous_callback_of_an_agent_uses_the_orm(
    name: str, scripted: Any, carry: Carry
) -> None:
    scripted("default", CALL, "Done.", **AGENTS[name])
    run = carry()
    assert (run.status, run.final_output) == ("completed", "Done."), run.error
    assert Group.objects.filter(name__startswith="called").exists()


OPTIONS: dict[str, Any] = {
    "call_model_input_filter": lambda data: called(data.model_data),
    "session_input_callback": lambda history, new: called([*history, *new]),
    "tool_error_formatter": lambda args: called("It failed."),
    "input_guardrails": [InputGuardrail(three)],
    "output_guardrails": [OutputGuardrail(three)],
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_synchronous_callback_of_the_run_options_uses_the_orm(
    name: str, scripted: Any, carry: Carry, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_DEFAULT_RUN_OPTIONS = {"run_config": RunConfig(**{name: OPTIONS[name]})}
    scripted("default", CALL, "Done.", tools=[tool(fails)])
    run = carry()
    assert (run.status, run.final_output) == ("completed", "Done."), run.error
    assert Group.objects.filter(name__startswith="called").exists()


def test_a_synchronous_error_handler_uses_the_orm(
    scripted: Any, carry: Carry, settings: Any
) -> None:
    handlers = {"max_turns": lambda data: called({"final_output": "Too long."})}
    settings.AGENTIC_DJANGO_DEFAULT_RUN_OPTIONS = {"error_handlers": handlers, "max_turns": 1}
    scripted("default", CALL, "Done.", tools=[tool()])
    run = carry()
    assert (run.status, run.final_output) == ("completed", "Too long."), run.error
    assert Group.objects.filter(name__startswith="called").exists()


HANDOFFS: dict[str, dict[str, Any]] = {
    "on_handoff": {"on_handoff": lambda context: called(None)},
    "is_enabled": {"is_enabled": two(True)},
    "input_filter": {"input_filter": lambda data: called(data)},
}


@pytest.mark.parametrize("name", HANDOFFS)
def test_a_synchronous_callback_of_a_handoff_uses_the_orm(
    name: str, scripted: Any, carry: Carry
) -> None:
    model = ScriptedModel([[assistant_message("Done.")]])
    other = Agent(name="other", instructions=two("Be brief."), model=model)
    transfer = function_call("transfer_to_other", {}, call_id="t1")
    scripted("default", [transfer], handoffs=[handoff(other, **HANDOFFS[name])])
    run = carry()
    assert (run.status, run.final_output) == ("completed", "Done."), run.error
    assert Group.objects.filter(name__startswith="called").count() >= 2


def test_the_callbacks_of_an_agent_that_is_a_tool_use_the_orm(scripted: Any, carry: Carry) -> None:
    model = ScriptedModel([[assistant_message("inner")]])
    inner = Agent(name="inner", instructions=two("Be brief."), model=model)
    as_tool = inner.as_tool("note", "Note.", is_enabled=two(True))
    scripted("default", call_tool("note", input="a"), "Done.", tools=[as_tool])
    run = carry()
    assert (run.status, run.final_output) == ("completed", "Done."), run.error


def test_a_callback_outside_a_run_is_called_as_the_sdk_calls_it(
    scripted: Any, carry: Carry
) -> None:
    threads: list[str] = []

    def instructions(context: Any, agent: Any) -> str:
        threads.append(threading.current_thread().name)
        return "Be kind."

    scripted("default", "Done.", instructions=instructions)
    carry()
    agent = SCRIPTED["default"]()
    agent.model = ScriptedModel([[assistant_message("Out.")]])
    assert asyncio.run(Runner.run(agent, "Hello")).final_output == "Out."
    assert len(threads) == 2
    assert "agentic-loop" not in threads


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SynchronousOnlyOperation("No."), "internal"),
        (OperationalError("The connection is lost."), "database_away"),
        (KeyError("amount"), "internal"),
    ],
)
@pytest.mark.parametrize("fails_at", [1, 2])
def test_a_policy_of_approval_that_fails_ends_the_run_and_asks_nobody(
    error: Exception, code: str, fails_at: int, scripted: Any, carry: Carry
) -> None:
    calls: list[str] = []

    async def needs_approval(context: Any, arguments: Any, call_id: str) -> bool:
        calls.append(call_id)
        if call_id == "second" and calls.count(call_id) >= fails_at:
            raise error
        return call_id == "first"

    first, second = (call_tool("note", text=each, call_id=each) for each in ("first", "second"))
    both = [*first, *second]
    scripted("default", both, *["Done."] * 12, tools=[tool(needs_approval=needs_approval)])
    run = carry()
    if run.status == "waiting":
        decide_approval(run.approvals.get(decision=""), True)
        finish(run)
    assert (run.status, run.error_code) == ("failed", code)


def test_a_policy_of_approval_that_fails_in_an_agent_that_is_a_tool_ends_the_run(
    scripted: Any, carry: Carry
) -> None:
    async def needs_approval(*_: Any) -> bool:
        return Group.objects.exists()  # The synchronous ORM, in an asynchronous function.

    model = ScriptedModel([CALL, [assistant_message("inner")]])
    inner = Agent(name="inner", model=model, tools=[tool(needs_approval=needs_approval)])
    scripted("default", call_tool("ask", input="a"), "Done.", tools=[inner.as_tool("ask", "Ask.")])
    run = carry()
    assert (run.status, run.error_code) == ("failed", "internal")
