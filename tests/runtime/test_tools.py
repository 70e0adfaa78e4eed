"""Tools for loops that a host writes by hand: told to models, called, and recorded once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from datetime import date
from functools import wraps
from typing import Any

import pytest
from agents import Agent, RunContextWrapper
from agents.testing import ScriptedModel, assistant_message, function_call
from asgiref.sync import async_to_sync
from django.contrib.auth.models import Group
from pydantic import BaseModel

from agentic_django.exceptions import BadInput, BadSetting, NotSerializable
from agentic_django.models import AgentRun
from agentic_django.openai_agents.call_scope import current_step
from agentic_django.openai_agents.tool_marks import at_most_once
from agentic_django.runtime import RunContext, Tool, ToolRegistry
from agentic_django.services import resolve_approval, retry_agent_run
from tests.support.agents import USAGE
from tests.support.attempts import AWAY, finish, payloads, recorded

pytestmark = pytest.mark.django_db

type Carry = Callable[..., AgentRun]
type Register = Callable[..., None]


def add(a: int, b: int = 1) -> int:
    """Add two numbers.

    Args:
        a: The first.
        b: The second.
    """
    return a + b


class Place(BaseModel):
    """Where something is."""

    city: str
    since: date


def registry_of(*functions: Any) -> ToolRegistry:
    """Return a registry of functions."""
    registry = ToolRegistry()
    for function in functions:
        registry.register(function)
    return registry


@async_to_sync
async def execute(registry: ToolRegistry, *args: Any, **kwargs: Any) -> Any:
    """Call a tool outside of any run."""
    return await registry.execute(*args, **kwargs)


@pytest.fixture
def executing(register: Register, carry: Carry) -> Callable[..., AgentRun]:
    """Call tools in a run whose first attempt is lost behind the calls; they are its output."""

    def executing(registry: ToolRegistry, *calls: Any) -> AgentRun:
        async def run(ctx: RunContext) -> list[Any]:
            outputs = [
                await registry.execute(call[0], call[1], call_id=(call[2:] or (None,))[0])
                for call in calls
            ]
            outputs_of.append(outputs)
            if ctx.run.attempt == 1:
                raise AWAY
            return outputs

        outputs_of: list[Any] = []
        register(run)
        done = carry("work")
        if done.status == "completed":
            assert outputs_of[0] == outputs_of[1], "What is replayed is not what was returned."
        return done

    return executing


# Told to models


def test_a_function_describes_itself_to_a_model() -> None:
    [told] = registry_of(add).to_openai_format()
    assert told["type"] == "function"
    assert told["function"]["name"] == "add"
    assert told["function"]["description"] == "Add two numbers."
    parameters = told["function"]["parameters"]
    assert parameters["properties"]["a"]["description"] == "The first."
    assert parameters["properties"]["a"]["type"] == "integer"
    assert Tool.from_function(add).to_openai_format() == told


def test_name_and_description_may_be_given() -> None:
    tool = Tool.from_function(add, name="plus", description="Sums.")
    assert tool.name == "plus"
    function = tool.to_openai_format()["function"]
    assert (function["name"], function["description"]) == ("plus", "Sums.")


def test_a_registered_tool_name_is_refused() -> None:
    registry = registry_of(add)
    with pytest.raises(BadInput, match="A tool 'add' is registered already"):
        registry.register(Tool.from_function(lambda: None, name="add", description="Other."))


def test_register_accepts_and_returns_a_tool() -> None:
    tool = Tool.from_function(add)
    assert ToolRegistry().register(tool) is tool


# Called


@pytest.mark.parametrize("arguments", ['{"a": 1, "b": 2}', {"a": 1, "b": 2}])
def test_arguments_are_json_text_or_a_dict(arguments: Any) -> None:
    assert execute(registry_of(add), "add", arguments) == 3


def test_arguments_may_hold_values_that_become_json_text() -> None:
    def when(day: date) -> str:
        """Say when."""
        return day.isoformat()

    assert execute(registry_of(when), "when", {"day": date(2026, 5, 4)}) == "2026-05-04"


def test_the_error_for_an_unknown_tool_names_the_registered_ones() -> None:
    with pytest.raises(BadInput, match=r"Unknown tool 'sub'\. Registered tools: add\."):
        execute(registry_of(add), "sub", {})


def test_an_exception_of_a_tool_becomes_a_text_for_the_model() -> None:
    def fail() -> None:
        """Fail."""
        raise ValueError("The window is dirty.")

    assert "An error occurred while running the tool" in execute(registry_of(fail), "fail", {})


@pytest.mark.parametrize("arguments", ["{", '{"a": "one"}', {}])
def test_wrong_arguments_become_a_text_for_the_model(arguments: Any) -> None:
    assert "rror" in execute(registry_of(add), "add", arguments)


@pytest.mark.parametrize("arguments", ['{"a": 1, "b": 2, "c": 3}', {"a": 1, "b": 2, "c": 3}])
def test_an_unknown_argument_becomes_a_text_for_the_model(arguments: Any) -> None:
    output = execute(registry_of(add), "add", arguments)
    assert output == "Error: add has no argument 'c'. Its arguments: a, b."


def test_an_asynchronous_tool_is_called_too() -> None:
    async def wait(seconds: float) -> str:
        """Wait."""
        await asyncio.sleep(seconds)
        return "waited"

    assert execute(registry_of(wait), "wait", {"seconds": 0.01}) == "waited"


def test_a_function_that_returns_an_awaitable_is_awaited() -> None:
    async def wait(seconds: float) -> str:
        """Wait."""
        return "waited"

    @wraps(wait)
    def decorated(*args: Any, **kwargs: Any) -> Any:
        return wait(*args, **kwargs)

    class Sleep:
        """Sleep."""

        async def __call__(self, seconds: float) -> str:
            return "slept"

    registry = registry_of(decorated, Sleep())
    assert execute(registry, "wait", {"seconds": 0.01}) == "waited"
    assert execute(registry, "Sleep", {"seconds": 0.01}) == "slept"


def test_a_tool_may_have_the_sdks_context_as_argument() -> None:
    def look(ctx: RunContextWrapper[Any], place: str) -> str:
        """Look."""
        return f"{type(ctx).__mro__[1].__name__} {place}"

    registry = registry_of(look)
    assert "ctx" not in registry.to_openai_format()[0]["function"]["parameters"]["properties"]
    assert execute(registry, "look", {"place": "out"}).endswith(" out")


def test_a_synchronous_tool_does_not_block_the_loop_outside_of_a_run() -> None:
    def thread() -> str:
        """Say where this runs."""
        return threading.current_thread().name

    async def main() -> tuple[Any, str]:
        return await registry_of(thread).execute("thread", {}), threading.current_thread().name

    there, here = asyncio.run(main())
    assert there != here


# Within a run


def test_a_synchronous_tool_uses_the_orm_and_is_called_once(
    executing: Callable[..., AgentRun],
) -> None:
    def add_group(name: str) -> int:
        """Create a group."""
        Group.objects.create(name=name)
        return Group.objects.count()

    registry = registry_of(add_group)
    run = executing(registry, ("add_group", {"name": "a"}, "c1"), ("add_group", '{"name":"b"}'))
    assert run.final_output == [1, 2]
    assert recorded(run) == [("tool", "add_group")] * 2
    assert [told["output"] for told in payloads(run, "tool.output")] == [1, 2]
    assert payloads(run, "tool.output")[0]["call_id"] == "c1"


@pytest.mark.parametrize(
    ("value", "kept"),
    [
        (21.5, 21.5),
        (None, None),
        (True, True),
        ({"b": [1, 2.5, {"c": None}]}, {"b": [1, 2.5, {"c": None}]}),
        ((1, 2), [1, 2]),
        (Place(city="Rome", since=date(2026, 5, 4)), {"city": "Rome", "since": "2026-05-04"}),
        ("half \ud83d\x00", "half \ud83d\x00"),
    ],
)
@pytest.mark.parametrize("typed", [True, False])
def test_a_tool_result_is_the_same_when_replayed(
    executing: Callable[..., AgentRun], value: Any, kept: Any, typed: bool
) -> None:
    calls = []

    def look() -> Any:
        """Look."""
        calls.append(1)
        return value

    if typed:
        look.__annotations__["return"] = type(value)
    registry = registry_of(look)
    assert execute(registry, "look", {}) == kept
    calls.clear()
    assert executing(registry, ("look", {})).final_output == [kept]
    assert calls == [1]


def test_a_tool_result_must_be_json(executing: Callable[..., AgentRun]) -> None:
    def make() -> Any:
        """Make something."""
        return object()

    registry = registry_of(make)
    with pytest.raises(NotSerializable, match="result of 'make'"):
        execute(registry, "make", {})
    run = executing(registry, ("make", {}))
    assert run.error_code == "not_serializable"
    assert recorded(run) == []


def test_calls_without_an_id_are_distinguished_by_their_arguments(
    register: Register, carry: Carry
) -> None:
    calls = []

    def note(text: str) -> str:
        """Note a text."""
        calls.append(text)
        return f"{text} {len(calls)}"

    registry = registry_of(note)  # As a host has it: one for the process, and all its runs.

    async def run(ctx: RunContext) -> list[Any]:
        texts = ["a", "b", "a"] if ctx.run.attempt == 1 else ["b", "a", "a", "a"]
        outputs = [await registry.execute("note", {"text": text}) for text in texts]
        if ctx.run.attempt == 1:
            raise AWAY
        return outputs

    register(run)
    assert carry("work").final_output == ["b 2", "a 1", "a 3", "a 4"]
    assert calls == ["a", "b", "a", "a"]
    assert carry("work").final_output == ["b 6", "a 5", "a 7", "a 8"]


def test_a_call_knows_its_idempotency_key(executing: Callable[..., AgentRun]) -> None:
    keys = []

    def pay() -> str:
        """Pay."""
        keys.append(current_step().idempotency_key)
        return "paid"

    run = executing(registry_of(pay), ("pay", {}, "c1"))
    assert keys == [f"{run.pk}::tool:c1"]


@pytest.mark.parametrize("mark", [at_most_once, lambda t: at_most_once(t.function_tool)])
def test_a_call_of_an_at_most_once_tool_is_not_repeated(
    register: Register, carry: Carry, mark: Any
) -> None:
    calls = []

    def pay() -> str:
        """Pay."""
        calls.append(1)
        raise SystemExit

    registry = ToolRegistry()
    mark(registry.register(pay))

    async def run(ctx: RunContext) -> Any:
        return await registry.execute("pay", {}, call_id="c1")

    register(run)
    run_ = carry("work")
    assert run_.status == "failed"
    retry_agent_run(run_)
    assert finish(run_).status == "waiting"
    resolve_approval(run_.approvals.get(), "fail")
    assert finish(run_).error_code == "unresolved_intent"
    assert calls == [1]


def test_a_function_cannot_be_marked_as_at_most_once() -> None:
    with pytest.raises(BadSetting, match="Mark the tool that is made of a function"):
        at_most_once(add)


def test_a_tool_serves_an_agent_of_the_sdk_as_well(register: Register, carry: Carry) -> None:
    tool = Tool.from_function(add)
    steps = [[function_call("add", {"a": 1, "b": 2}, call_id="c1")], [assistant_message("3.")]]
    model = ScriptedModel(steps, default_usage=USAGE)

    async def run(ctx: RunContext) -> Any:
        by_hand = await registry_of(tool).execute("add", {"a": 40, "b": 2})
        agent = Agent(name="sdk", model=model, tools=[tool.function_tool])
        answer = await ctx.run_agent(agent, "1 and 2?")
        if ctx.run.attempt == 1:
            raise AWAY
        return [by_hand, answer]

    register(run)
    run_ = carry("work")
    assert run_.final_output == [42, "3."]
    assert len(model.calls) == 2
    assert model.calls[1].input[-1]["output"] == "3"
