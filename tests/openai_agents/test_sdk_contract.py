"""The names and behaviours of the Agents SDK on which the journal depends.

A failure here means that the SDK has changed. Its message says which module of ours must follow.
"""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import inspect
from importlib import import_module
from typing import Any

import agents
import pytest
from agents import Agent, FunctionTool, Runner, function_tool
from agents.models.interface import Model
from agents.run import AgentRunner, get_default_agent_runner, set_default_agent_runner
from agents.run_context import RunContextWrapper
from agents.testing import ScriptedModel, assistant_message, function_call
from agents.tool import ToolOutputText
from agents.tool_context import ToolContext
from pydantic import BaseModel

from agentic_django.openai_agents import sdk_internals

INTERNALS = "agentic_django.openai_agents.sdk_internals"

JOURNALED_TOOLS = "agentic_django.openai_agents.journaled_tools"

NAMES = {
    "agents.agent:AgentBase.get_all_tools": "agentic_django.openai_agents.agents",
    "agents.agent_tool_state:get_agent_tool_resume_state": JOURNALED_TOOLS,
    "agents.agent_tool_state:get_agent_tool_state_scope": JOURNALED_TOOLS,
    "agents.agent_tool_state:peek_agent_tool_run_result": JOURNALED_TOOLS,
    "agents.items:ItemHelpers._convert_tool_output_as_structured": INTERNALS,
    "agents.models._openai_shared:get_default_openai_client": INTERNALS,
    "agents.models._openai_shared:get_default_openai_key": INTERNALS,
    "agents.models.interface:Model._cleanup_on_run_end": INTERNALS,
    "agents.run:get_default_agent_runner": "agentic_django.openai_agents.runner",
    "agents.run:set_default_agent_runner": "agentic_django.openai_agents.runner",
    "agents.tool:_FailureHandlingFunctionToolInvoker": INTERNALS,
    "agents.tool:_get_function_tool_invoke_context": INTERNALS,
    "agents.tool:maybe_invoke_function_tool_failure_error_function": INTERNALS,
}
"""Private, undocumented or experimental names, and the module that uses each."""


@pytest.mark.parametrize(("name", "user"), NAMES.items(), ids=NAMES.keys())
def test_the_sdk_still_has_each_name_that_the_journal_uses(name: str, user: str) -> None:
    module, _, path = name.partition(":")
    found: Any = import_module(module)
    for part in path.split("."):
        found = getattr(found, part, None)
    assert found is not None, f"The Agents SDK no longer has {name}, which {user} uses."


def test_a_state_has_the_input_with_which_its_run_began() -> None:
    gated = function_tool(pay, needs_approval=True)
    model = ScriptedModel([[function_call("pay", {"amount": 7}, call_id="c1")]])
    result = asyncio.run(Runner.run(Agent(name="a", model=model, tools=[gated]), "Pay."))
    assert sdk_internals.original_input(result.to_state()) == "Pay."


def pay(amount: int) -> str:
    """Pay."""
    return f"paid {amount}"


def context(**columns: Any) -> ToolContext[Any]:
    """Return the context of a tool call."""
    given = {"tool_name": "pay", "tool_call_id": "c1", "tool_arguments": "{}", **columns}
    return ToolContext(context=None, **given)


def test_a_tool_made_of_an_agent_knows_that_and_its_agent() -> None:
    inner = Agent(name="inner")
    tool: Any = inner.as_tool(tool_name="ask", tool_description="Ask.")
    message = f"Agent.as_tool() marks its tools in another way: change {INTERNALS}."
    assert getattr(tool, "_is_agent_tool", None) is True, message
    assert getattr(tool, "_agent_instance", None) is inner, message
    assert getattr(function_tool(pay), "_is_agent_tool", None) is False, message


def test_a_tool_with_a_typed_result_has_an_adapter_that_writes_it() -> None:
    class Receipt(BaseModel):
        amount: int

    def receipt() -> Any:
        """Return a receipt."""

    tool = function_tool(receipt, output_type=Receipt)
    adapter = getattr(tool, "_output_type_adapter", None)
    assert adapter is not None, f"Typed results are written in another way: change {INTERNALS}."
    assert adapter.dump_json(Receipt(amount=7)) == b'{"amount":7}'


def test_results_made_of_parts_are_recognised_as_structured() -> None:
    from agentic_django.openai_agents.sdk_internals import is_structured_output

    assert is_structured_output([ToolOutputText(text="a")])
    assert not is_structured_output(["a", "b"])


def test_an_invoker_of_the_sdk_is_bound_to_its_tool_and_to_each_copy() -> None:
    message = f"Copies of a tool are bound in another way: change DelegatingInvoker in {INTERNALS}."
    tool: Any = function_tool(pay)
    assert getattr(tool.on_invoke_tool, "_function_tool", None) is tool, message
    for copied in (copy.copy(tool), dataclasses.replace(tool)):
        assert copied.on_invoke_tool is not tool.on_invoke_tool, message
        assert getattr(copied.on_invoke_tool, "_function_tool", None) is copied, message
    assert callable(getattr(tool.on_invoke_tool, "__agents_bind_function_tool__", None)), message


def test_the_sdk_prepares_the_arguments_before_an_approval_only_for_its_own_invokers() -> None:
    from agents.util import _approvals

    from agentic_django.openai_agents.sdk_internals import DelegatingInvoker

    decided: list[Any] = []

    async def is_large(ctx: Any, arguments: dict[str, Any], call_id: str) -> bool:
        decided.append(arguments["amount"])
        return False

    def outcome(tool: FunctionTool) -> str:
        wrapper = RunContextWrapper(None)
        text = '{"amount": "700"}'
        judged = _approvals.evaluate_function_tool_approval(tool, wrapper, text, "c1")
        return str(asyncio.run(judged).outcome)

    own, delegating, plain = (function_tool(pay, needs_approval=is_large) for _ in range(3))

    def around(tool: Any, call: Any, ctx: Any, arguments: Any) -> Any:
        return call(arguments)

    delegating.on_invoke_tool = DelegatingInvoker(delegating.on_invoke_tool, around)
    invoke = plain.on_invoke_tool

    async def wrapped(ctx: Any, arguments: str) -> Any:
        return await invoke(ctx, arguments)

    plain.on_invoke_tool = wrapped
    assert outcome(own) == outcome(delegating) == "require_approval"
    assert outcome(plain) == "invoke", (
        "A plain function is safe now: DelegatingInvoker need not derive from the SDK's class."
    )
    assert decided == ["700"]


def test_a_delegating_invoker_does_what_the_sdks_own_does() -> None:
    from agentic_django.openai_agents.sdk_internals import DelegatingInvoker

    calls: list[Any] = []

    def around(tool: Any, call: Any, ctx: Any, arguments: Any) -> Any:
        calls.append((tool, arguments))
        return call(arguments)

    def fail(amount: int) -> str:
        """Fail."""
        raise ValueError("No money.")

    for fn, expected in ((pay, "paid 7"), (fail, "An error occurred")):
        tool: Any = function_tool(fn)
        tool.on_invoke_tool = DelegatingInvoker(tool.on_invoke_tool, around)
        assert tool.__wrapped__ is fn
        for each in (tool, copy.copy(tool), dataclasses.replace(tool)):
            given = '{"amount": 7}'
            result = asyncio.run(each.on_invoke_tool(context(tool_arguments=given), given))
            assert expected in result
            called, arguments = calls.pop()
            assert called is each
            assert arguments == given


def test_an_invoker_that_wants_less_gets_a_narrower_context() -> None:
    from agentic_django.openai_agents.sdk_internals import narrow_context

    async def wide(ctx: ToolContext[Any], arguments: str) -> str:
        return ""

    async def narrow(ctx: RunContextWrapper[Any], arguments: str) -> str:
        return ""

    given = context()
    assert narrow_context(wide, given) is given
    assert not isinstance(narrow_context(narrow, given), ToolContext)


def test_the_hosts_default_key_for_openai_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    from agentic_django.openai_agents import sdk_internals

    before = sdk_internals.get_default_openai_key()
    try:
        agents.set_default_openai_key("sk-test", use_for_tracing=False)
        assert sdk_internals.get_default_openai_key() == "sk-test"
    finally:
        agents.set_default_openai_key(before, use_for_tracing=False)  # type: ignore[arg-type]
    assert sdk_internals.get_default_openai_client() is None


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "not streamed"])
def test_the_sdk_reads_an_agents_tools_from_its_class_at_each_turn(
    monkeypatch: pytest.MonkeyPatch, streamed: bool
) -> None:
    turns: list[str] = []

    class Watched(Agent[Any]):
        async def get_all_tools(self, run_context: Any) -> Any:
            turns.append(self.name)
            return await super().get_all_tools(run_context)

    steps = [[function_call("pay", {"amount": 1}, call_id="c1")], [assistant_message("Paid.")]]
    agent = Watched(name="first", model=ScriptedModel(steps), tools=[function_tool(pay)])
    assert run(agent.clone(name="copy"), streamed=streamed) == "Paid."
    assert turns == ["copy", "copy"], (
        "The SDK no longer calls get_all_tools() once per turn: change "
        "agentic_django.openai_agents.agents."
    )


@pytest.mark.parametrize("streamed", [True, False], ids=["streamed", "not streamed"])
def test_the_sdk_cleans_up_a_model_as_a_run_ends(streamed: bool) -> None:
    cleaned: list[Any] = []

    class Cleaned(ScriptedModel):
        async def _cleanup_on_run_end(self, owner: object) -> None:
            cleaned.append(owner)

    agent = Agent(name="first", model=Cleaned([[assistant_message("Done.")]]))
    assert run(agent, streamed=streamed) == "Done."
    assert len(cleaned) == 1, f"Models are cleaned up in another way: change {INTERNALS}."


def run(agent: Agent[Any], *, streamed: bool) -> Any:
    """Run an agent outside of runs of ours; return its output."""

    async def drained() -> Any:
        if not streamed:
            return (await Runner.run(agent, "Hello")).final_output
        result = Runner.run_streamed(agent, "Hello")
        async for _ in result.stream_events():
            pass
        return result.final_output

    return asyncio.run(drained())


def test_the_default_runner_also_runs_an_agent_that_is_a_tool() -> None:
    started: list[str] = []

    class Watching(AgentRunner):
        async def run(self, starting_agent: Any, input: Any, **kwargs: Any) -> Any:
            started.append(starting_agent.name)
            return await super().run(starting_agent, input, **kwargs)

    inner = Agent(name="inner", model=ScriptedModel([[assistant_message("It is sunny.")]]))
    ask = inner.as_tool(tool_name="ask", tool_description="Ask.")
    steps = [[function_call("ask", {"input": "?"}, call_id="c1")], [assistant_message("Sunny.")]]
    before = get_default_agent_runner()
    set_default_agent_runner(Watching())
    try:
        run(Agent(name="outer", model=ScriptedModel(steps), tools=[ask]), streamed=False)
    finally:
        set_default_agent_runner(before)
    assert started == ["outer", "inner"], (
        "The SDK no longer runs all agents through its default runner: change "
        "agentic_django.openai_agents.runner."
    )


@pytest.mark.parametrize("method", ["get_response", "stream_response"])
def test_a_model_gets_its_arguments_in_the_known_order(method: str) -> None:
    from agentic_django.openai_agents import journaled_models

    names = tuple(inspect.signature(getattr(Model, method)).parameters)[1:]
    known = journaled_models.MODEL_ARGUMENTS
    assert names[: len(known)] == known, (
        f"Model.{method}() has other parameters: change "
        "MODEL_ARGUMENTS in agentic_django.openai_agents.journaled_models."
    )


def test_a_handoff_keeps_its_callbacks_where_the_journal_finds_them() -> None:
    from agentic_django.openai_agents.sdk_internals import handoff_cells

    def on_handoff(context: Any) -> None: ...
    def is_enabled(context: Any, agent: Any) -> bool:
        return True

    made = agents.handoff(Agent(name="other"), on_handoff=on_handoff, is_enabled=is_enabled)
    found = {cell.cell_contents for cell in handoff_cells(made)}
    assert found >= {on_handoff, is_enabled}, f"Handoffs are made in another way: {INTERNALS}."


def test_a_tool_and_an_mcp_server_keep_their_callbacks_where_the_journal_finds_them() -> None:
    from agents.mcp import MCPServerStdio

    from agentic_django.openai_agents import sdk_internals

    def policy(*_: Any) -> bool:
        return True

    def failed(*_: Any) -> str:
        return "It failed."

    tool = function_tool(pay, failure_error_function=failed)
    server = MCPServerStdio(
        {"command": "true"}, require_approval=policy, failure_error_function=failed
    )
    message = f"Callbacks have other names: change {INTERNALS}."
    assert getattr(tool, sdk_internals.FAILURE_ERROR_FUNCTION, None) is failed, message
    assert getattr(server, sdk_internals.FAILURE_ERROR_FUNCTION, None) is failed, message
    assert getattr(server, sdk_internals.APPROVAL_POLICY, None) is policy, message
