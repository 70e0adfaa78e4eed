"""Calls whose ids the provider repeats: each is executed, recorded and shown by itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from agents import function_tool
from agents.testing import ScriptedModel, assistant_message, function_call

from agentic_django.engine.session_items import with_unique_call_ids
from agentic_django.models import AgentRun
from agentic_django.presentation import conversation
from agentic_django.runtime import RunContext, RunResult, ToolRegistry
from agentic_django.services import decide_approval
from tests.support.agents import USAGE, call_tool
from tests.support.attempts import AWAY, finish
from tests.support.rows import make_session

pytestmark = pytest.mark.django_db

type Carry = Callable[..., AgentRun]
type Register = Callable[..., None]


def orders() -> tuple[Any, Any, list[str]]:
    """Return two functions on orders, and the calls that they have got."""
    calls: list[str] = []

    def find_order(number: int) -> str:
        """Find an order."""
        calls.append(f"find {number}")
        return f"order {number}"

    def cancel_order(number: int) -> str:
        """Cancel an order."""
        calls.append(f"cancel {number}")
        return f"cancelled {number}"

    return find_order, cancel_order, calls


def three_calls() -> list[Any]:
    """Return the steps of a model that gives each of three calls the same id."""
    return [
        call_tool("find_order", call_id="call_0", number=1),
        call_tool("find_order", call_id="call_0", number=2),
        call_tool("cancel_order", call_id="call_0", number=2),
    ]


def loop(tools: ToolRegistry, model: Any, lose: int = 0) -> Any:
    """Return the documented hand-written loop; its first attempt is lost after ``lose`` answers."""

    async def run(ctx: RunContext) -> RunResult:
        messages: list[Any] = list(ctx.input_messages)
        for n in range(1, 9):
            answer = await ctx.generate(messages, tools=tools, model=model)
            messages.append(answer.message.to_dict())
            if n == lose and ctx.run.attempt == 1:
                raise AWAY
            if not answer.tool_calls:
                break
            for call in answer.tool_calls:
                function = call["function"]
                output = await tools.execute(
                    function["name"], function["arguments"], call_id=call["id"]
                )
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": output})
        return RunResult(messages[-1]["content"], messages)

    return run


def outputs(items: list[Any]) -> list[Any]:
    """Return the outputs of tools among items, in order."""
    return [item["output"] for item in items if item.get("type") == "function_call_output"]


WANTED = ["order 1", "order 2", "cancelled 2"]


@pytest.mark.parametrize("lose", [0, 1, 2, 3, 4])
def test_a_hand_written_loop_executes_each_call_of_a_repeated_id(
    register: Register, carry: Carry, user: Any, lose: int
) -> None:
    find_order, cancel_order, calls = orders()
    tools = ToolRegistry()
    tools.register(find_order)
    tools.register(cancel_order)
    model = ScriptedModel([*three_calls(), [assistant_message("Done.")]] * 2, default_usage=USAGE)
    register(loop(tools, model, lose))
    session = make_session(user)
    run = carry("work", session=session)
    assert run.final_output == "Done."
    assert calls == ["find 1", "find 2", "cancel 2"]
    assert [card.output for card in conversation.tool_calls(run)] == WANTED
    assert outputs(model.calls[-1].input) == WANTED

    run = carry("work", session=session)  # The ids begin again with each run.
    assert calls == ["find 1", "find 2", "cancel 2"] * 2
    history = list(session.items.order_by("sequence").values_list("payload", flat=True))
    assert outputs(with_unique_call_ids(history)) == WANTED * 2
    shown = [m.call.output for m in conversation.messages(history) if m.call]
    assert shown == WANTED * 2


def test_an_agent_of_the_sdk_executes_each_call_of_a_repeated_id(
    scripted: Any, carry: Carry, user: Any
) -> None:
    find_order, cancel_order, calls = orders()
    tools = [function_tool(find_order), function_tool(cancel_order)]
    both = [*three_calls(), "Done."]
    model = scripted("default", *both, *both, tools=tools)
    session = make_session(user)
    assert carry(session=session).final_output == "Done."
    run = carry(session=session)
    assert run.final_output == "Done."
    assert calls == ["find 1", "find 2", "cancel 2"] * 2
    assert [card.output for card in conversation.tool_calls(run)] == WANTED
    assert outputs(model.calls[-1].input) == WANTED * 2


def test_calls_of_one_response_with_the_same_id_are_all_executed(
    scripted: Any, carry: Carry
) -> None:
    find_order, _, calls = orders()
    both = [
        function_call("find_order", {"number": 1}, call_id="call_0"),
        function_call("find_order", {"number": 2}, call_id="call_0"),
        function_call("find_order", {"number": 2}, call_id=""),
    ]
    scripted("default", both, "Done.", tools=[function_tool(find_order)])
    run = carry()
    assert run.final_output == "Done."
    assert sorted(calls) == ["find 1", "find 2", "find 2"]
    assert len(conversation.tool_calls(run)) == 3


def test_an_approved_call_does_not_approve_a_later_call_of_its_id(
    scripted: Any, carry: Carry
) -> None:
    paid: list[int] = []

    @function_tool(needs_approval=True)
    def pay(amount: int) -> str:
        """Pay."""
        paid.append(amount)
        return "paid"

    steps = [call_tool("pay", call_id="call_0", amount=amount) for amount in (7, 700)]
    scripted("default", *steps, "Paid.", tools=[pay])
    run = carry()
    decide_approval(run.approvals.get(), approve=True)
    assert finish(run).status == "waiting"
    assert paid == [7]
    decide_approval(run.approvals.get(decision=""), approve=False)
    assert finish(run).final_output == "Paid."
    assert paid == [7]


@pytest.mark.not_replayed
def test_calls_of_a_hosts_own_client_may_repeat_an_id(register: Register, carry: Carry) -> None:
    find_order, cancel_order, calls = orders()
    tools = ToolRegistry()
    tools.register(find_order)
    tools.register(cancel_order)

    async def run(ctx: RunContext) -> list[Any]:
        wanted = [("find_order", 1), ("find_order", 2), ("find_order", 1), ("cancel_order", 2)]
        if ctx.run.attempt > 1:  # The host's own state has the result of the first call.
            wanted = wanted[1:]
        done = [await tools.execute(n, {"number": o}, call_id="call_0") for n, o in wanted]
        if ctx.run.attempt == 1:
            raise AWAY
        return done

    register(run)
    found = carry("work")
    assert found.final_output == ["order 2", "order 1", "cancelled 2"]
    assert calls == ["find 1", "find 2", "find 1", "cancel 2"]


def test_a_history_keeps_all_calls_of_a_repeated_id() -> None:
    pair = [
        {"type": "function_call", "call_id": "call_0", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "call_0", "output": "a"},
    ]
    both = [pair[0], pair[0], pair[1], {**pair[1], "output": "b"}]
    ids = [item["call_id"] for item in with_unique_call_ids([*pair, *both])]
    assert ids == ["call_0", "call_0", "call_0-2", "call_0-3", "call_0-2", "call_0-3"]


def test_unique_ids_are_kept_as_the_provider_gave_them(scripted: Any, carry: Carry) -> None:
    find_order, _, _ = orders()
    step = call_tool("find_order", call_id="call_a", number=1)
    model = scripted("default", step, "Done.", tools=[function_tool(find_order)])
    assert carry().final_output == "Done."
    assert [i["call_id"] for i in model.calls[-1].input if "call_id" in i] == ["call_a"] * 2
