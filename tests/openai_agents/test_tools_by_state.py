"""Tools that an agent offers by state: a recorded call is replayed without the live tool."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import agents
import pytest
from agents import Agent, CustomTool, FunctionTool, RunConfig, function_tool
from agents.testing import ScriptedModel, assistant_message, function_call
from django.test import override_settings
from openai.types.responses import ResponseCustomToolCall

from agentic_django.models import AgentRun
from agentic_django.services import decide_approval
from tests.openai_agents.test_recording import streamed
from tests.support import agents as test_agents
from tests.support.agents import USAGE, call_tool
from tests.support.attempts import AWAY, finish, payloads

pytestmark = pytest.mark.django_db

type Carry = Callable[..., AgentRun]


class Door:
    """A door, with one tool that opens it while it is closed."""

    def __init__(self) -> None:
        self.is_open = False
        self.calls: list[str] = []

    def tool(self, **options: Any) -> FunctionTool:
        """Return the tool."""

        @function_tool(name_override="open_door", **options)
        def open_door() -> str:
            """Open the door."""
            self.calls.append("open")
            self.is_open = True
            return "open now"

        return open_door


def test_a_tool_that_its_own_call_disables_is_replayed(scripted: Any, carry: Carry) -> None:
    door = Door()
    tool = door.tool(is_enabled=lambda context, agent: not door.is_open)
    model = scripted("default", call_tool("open_door"), AWAY, "Done.", tools=[tool])
    run = carry()
    assert run.final_output == "Done.", run.error_detail
    assert door.calls == ["open"]
    assert [t.name for t in model.calls[-1].tools] == []


def test_a_tool_that_a_factory_no_longer_lists_is_replayed(scripted: Any, carry: Carry) -> None:
    door = Door()
    model = ScriptedModel(
        [call_tool("open_door"), AWAY, [assistant_message("Done.")]], default_usage=USAGE
    )

    def factory() -> Agent[Any]:
        tools: list[Any] = [] if door.is_open else [door.tool()]
        return Agent(name="default", model=model, tools=tools)

    test_agents.SCRIPTED["default"] = factory
    run = carry()
    assert run.final_output == "Done.", run.error_detail
    assert door.calls == ["open"]
    assert model.calls[-1].input[-1]["output"] == "open now"


def test_a_custom_tool_that_a_factory_no_longer_lists_is_replayed(
    scripted: Any, carry: Carry
) -> None:
    calls: list[str] = []

    async def sql(context: Any, given: str) -> str:
        calls.append(given)
        return "1 row"

    call = ResponseCustomToolCall(
        call_id="c1", input="SELECT 1", name="sql", type="custom_tool_call"
    )
    steps = [streamed(call), AWAY, [assistant_message("Done.")]]
    model = ScriptedModel(steps, default_usage=USAGE)
    tool = CustomTool(name="sql", description="Query.", on_invoke_tool=sql)
    test_agents.SCRIPTED["default"] = lambda: Agent(
        name="default", model=model, tools=[] if calls else [tool]
    )
    run = carry()
    assert run.final_output == "Done.", run.error_detail
    assert calls == ["SELECT 1"]


def test_a_handoff_that_is_no_longer_enabled_is_replayed(scripted: Any, carry: Carry) -> None:
    there = Agent(
        name="there",
        model=ScriptedModel([AWAY, [assistant_message("Here.")]], default_usage=USAGE),
    )
    done: list[int] = []

    def go(context: Any) -> None:
        done.append(1)

    handoff = agents.handoff(there, on_handoff=go, is_enabled=lambda context, agent: not done)
    model = scripted("default", call_tool("transfer_to_there"), handoffs=[handoff])
    run = carry()
    assert run.final_output == "Here."
    assert len(model.calls) == 1


def test_a_sibling_call_without_a_result_uses_the_tool_that_was_offered(
    scripted: Any, carry: Carry
) -> None:
    door, failed = Door(), []

    def is_closed(context: Any, agent: Any) -> bool:
        return not door.is_open

    @function_tool(is_enabled=is_closed, failure_error_function=None)
    async def ring() -> str:
        """Ring. The first call fails, after the other call is recorded."""
        if not failed:
            failed.append(1)
            await asyncio.sleep(0.2)
            raise AWAY
        return "rung"

    @function_tool(is_enabled=is_closed)
    async def open_door() -> str:
        """Open."""
        door.calls.append("open")
        door.is_open = True
        return "open now"

    both = [function_call(n, {}, call_id=f"c-{n}") for n in ("ring", "open_door")]
    scripted("default", both, "Done.", tools=[ring, open_door])
    run = carry()
    assert run.final_output == "Done.", run.error_detail
    outputs = {o["tool"]: o["output"] for o in payloads(run, "tool.output")}
    assert outputs == {"ring": "rung", "open_door": "open now"}


def test_an_approved_call_of_a_tool_that_is_disabled_meanwhile_is_made(
    scripted: Any, carry: Carry
) -> None:
    door, closed = Door(), [False]
    tool = door.tool(needs_approval=True, is_enabled=lambda context, agent: not closed[0])
    scripted("default", call_tool("open_door"), "Done.", tools=[tool])
    run = carry()
    closed[0] = True
    decide_approval(run.approvals.get(), approve=True)
    finish(run)
    assert run.final_output == "Done.", run.error_detail
    assert door.calls == ["open"]


def test_a_call_of_a_disabled_tool_that_was_not_offered_is_still_refused(
    scripted: Any, carry: Carry
) -> None:
    door = Door()
    tool = door.tool(is_enabled=False)
    options = {"run_config": RunConfig(tool_not_found_behavior="return_error_to_model")}
    with override_settings(AGENTIC_DJANGO_DEFAULT_RUN_OPTIONS=options):
        scripted("default", call_tool("open_door"), AWAY, "Sorry.", tools=[tool])
        assert carry().final_output == "Sorry."
    assert door.calls == []
