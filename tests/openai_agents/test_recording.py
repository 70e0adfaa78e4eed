"""What the Agents SDK must keep doing for the journal to work, seam by seam."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import json
from collections.abc import Callable, Iterator
from datetime import date
from functools import partial
from typing import Any

import agents
import mcp.types
import pytest
from agents import Agent, CustomTool, FunctionTool, RunConfig, Runner, function_tool
from agents.items import ModelResponse
from agents.mcp import MCPServer
from agents.models.interface import Model, ModelProvider
from agents.run import AgentRunner, get_default_agent_runner, set_default_agent_runner
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call
from agents.tool import ToolOutputFileContent, ToolOutputImage, ToolOutputText
from agents.tool_context import ToolContext
from agents.usage import Usage
from django.contrib.auth.models import Group
from openai._models import construct_type
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseCustomToolCall,
    ResponseOutputItem,
    ResponseReasoningItem,
)
from pydantic import BaseModel

from agentic_django.engine import journal_entries
from agentic_django.models import AgentRun
from agentic_django.openai_agents import conversion
from agentic_django.openai_agents.call_scope import current_scope, current_step
from agentic_django.openai_agents.tool_marks import at_most_once
from agentic_django.serialization import dumps, loads
from agentic_django.services import decide_approval, resolve_approval, retry_agent_run
from tests.support import agents as test_agents
from tests.support.agents import USAGE, call_tool
from tests.support.attempts import AWAY, finish, payloads, recorded
from tests.support.openai_server import Call, Cut, OpenAIServer, Reply

pytestmark = pytest.mark.django_db

type Carry = Callable[..., AgentRun]


def streamed(*output: Any) -> ModelStep:
    """Return a step with items of kinds that the scripted model cannot stream by itself."""
    response = Response.model_construct(
        id="resp-1",
        created_at=0,
        model="scripted",
        object="response",
        output=list(output),
        parallel_tool_calls=True,
        tool_choice="auto",
        tools=[],
        usage=None,
    )
    event = ResponseCompletedEvent.model_construct(
        type="response.completed", response=response, sequence_number=0
    )
    return ModelStep.stream([event])


# What a tool returns


class Reading(BaseModel):
    """A pydantic result."""

    celsius: float
    taken: date


@dataclasses.dataclass
class Point:
    """A result that is a dataclass."""

    x: int
    y: int


RETURNED: dict[str, Any] = {
    "text": "sunny",
    "empty text": "",
    "number": 21,
    "float": 21.5,
    "nothing": None,
    "truth": True,
    "list": [1, "two", None],
    "empty list": [],
    "tuple": (1, 2),
    "dict": {"b": 1, "a": [2.5, {"c": None}]},
    "dict with numbers as keys": {1: "one"},
    "pydantic": Reading(celsius=21.5, taken=date(2026, 5, 4)),
    "dataclass": Point(1, 2),
    "date": date(2026, 5, 4),
    "bytes": b"raw",
    "text output": ToolOutputText(text="sunny"),
    "image output": ToolOutputImage(image_url="https://example.com/a.png", detail="low"),
    "image output as dict": {"type": "image", "image_url": "https://example.com/a.png"},
    "file output": ToolOutputFileContent(file_data="aGk=", filename="a.txt"),
    "outputs": [ToolOutputText(text="a"), ToolOutputImage(file_id="file-1")],
    "outputs as dicts": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}],
    "mixed list": [ToolOutputText(text="a"), {"type": "text", "text": "b"}],
    "dict with a type": {"type": "weather", "sky": "blue"},
    "lone surrogate": "half \ud83d of a smiley",
    "NUL": "a\x00b",
    "large number": 2**70,
}


@pytest.mark.parametrize("value", RETURNED.values(), ids=RETURNED.keys())
def test_a_recorded_tool_result_makes_the_same_request(
    scripted: Any, carry: Carry, value: Any
) -> None:
    calls = []

    @function_tool
    async def look() -> Any:
        """Look out of the window."""
        calls.append(1)
        return value

    model = scripted("default", call_tool("look"), AWAY, "Seen.", tools=[look])
    run = carry()
    assert run.final_output == "Seen."
    assert run.attempt == 2
    assert len(calls) == 1
    before, after = model.calls[1], model.calls[2]
    assert before.input == after.input
    assert json.dumps(before.input) == json.dumps(after.input)
    assert run.usage["total_tokens"] == 30


@pytest.mark.parametrize("kind", [Reading, Point])
def test_a_typed_result_is_the_same_for_the_model_when_replayed(
    scripted: Any, carry: Carry, kind: type
) -> None:
    value = RETURNED["pydantic" if kind is Reading else "dataclass"]

    async def look() -> Any:
        """Look out of the window."""
        return value

    tool = function_tool(look, output_type=kind)
    model = scripted("default", call_tool("look"), AWAY, "Seen.", tools=[tool])
    carry()
    assert model.calls[1].input == model.calls[2].input


def test_an_error_that_a_tool_returns_to_the_model_is_recorded(scripted: Any, carry: Carry) -> None:
    calls = []

    @function_tool
    def look() -> str:
        """Fail."""
        calls.append(1)
        raise ValueError("The window is dirty.")

    model = scripted("default", call_tool("look"), AWAY, "I see.", tools=[look])
    assert carry().final_output == "I see."
    assert len(calls) == 1
    assert model.calls[1].input == model.calls[2].input
    assert "An error occurred" in model.calls[2].input[-1]["output"]


def test_an_error_that_a_tool_raises_ends_the_run_and_is_not_recorded(
    scripted: Any, carry: Carry
) -> None:
    calls = []

    @function_tool(failure_error_function=None)
    def look() -> str:
        """Fail once."""
        calls.append(1)
        if len(calls) == 1:
            raise ValueError("The window is dirty.")
        return "sunny"

    scripted("default", call_tool("look"), "Seen.", tools=[look])
    run = carry()
    assert run.status == "failed"
    assert run.error_code == "internal"
    assert "The window is dirty." in run.error_detail
    assert recorded(run) == [("model", "default")]
    retry_agent_run(run)
    assert finish(run).final_output == "Seen."
    assert len(calls) == 2


@pytest.mark.parametrize("how", ["sync", "async"])
def test_a_tool_that_exits_ends_its_run_and_not_the_process(
    scripted: Any, carry: Carry, how: str
) -> None:
    def leave() -> str:
        """Leave."""
        raise SystemExit(3)

    async def leave_async() -> str:
        """Leave."""
        raise SystemExit(3)

    tool = function_tool(leave if how == "sync" else leave_async, name_override="leave")
    scripted("default", call_tool("leave"), tools=[tool])
    run = carry()
    assert run.status == "failed"
    assert run.error_code == "internal"
    assert carry("echo").final_output == "You said: Hello"


# What a model returns


def test_a_request_after_a_replay_has_no_added_fields(
    openai_server: OpenAIServer, carry: Carry
) -> None:
    openai_server.enqueue(
        Reply("I will look.", Call("add_group", {"name": "a"})), Cut(Reply("Never")), "Done."
    )
    run = carry("http")
    assert run.final_output == "Done."
    first, before, after = openai_server.requests
    assert before == after
    assert len(first["input"]) == 1
    assert "null" not in json.dumps(after["input"])
    assert Group.objects.count() == 1


def test_a_response_that_was_cut_off_is_requested_again(
    openai_server: OpenAIServer, carry: Carry
) -> None:
    openai_server.enqueue(Cut(Reply("A long answer"), events=6), "A whole answer.")
    run = carry("http")
    assert run.final_output == "A whole answer."
    assert recorded(run) == [("model", "http")]


UNKNOWN = {"type": "dream", "id": "d1", "deep": [{"none": None, "n": 2**60, "s": "\ud83d\0"}]}


@pytest.mark.parametrize(
    "item",
    [
        construct_type(type_=ResponseOutputItem, value=UNKNOWN),
        construct_type(type_=ResponseOutputItem, value={**UNKNOWN, "type": "function_call"}),
        ResponseReasoningItem(id="r1", type="reasoning", summary=[], encrypted_content="x"),
    ],
    ids=["as the client makes it", "with missing fields", "a known one"],
)
def test_output_items_of_any_kind_are_stored_without_loss(item: Any) -> None:
    response = ModelResponse(output=[item], usage=Usage(), response_id="r", request_id="q")
    text = dumps(conversion.dump_response(response))
    again = conversion.load_response(loads(text))
    assert dumps(conversion.dump_response(again)) == text
    assert again.output == [item]
    if item.type == "dream":
        assert loads(text)["output"] == [UNKNOWN]


def test_usage_and_ids_of_a_response_are_replayed(scripted: Any, carry: Carry) -> None:
    usage = Usage(requests=2, input_tokens=7, output_tokens=3, total_tokens=10)
    usage.input_tokens_details.cached_tokens = 5
    usage.output_tokens_details.reasoning_tokens = 2
    step = ModelStep(
        output=[function_call("look", {}, call_id="c1")], usage=usage, response_id="resp-1"
    )
    seen: list[ModelResponse] = []

    class Hooks(agents.RunHooks[Any]):
        async def on_llm_end(self, context: Any, agent: Any, response: ModelResponse) -> None:
            seen.append(response)

    @function_tool
    def look() -> str:
        """Look."""
        return "sunny"

    scripted("default", step, AWAY, "Seen.", tools=[look], hooks=None)
    agent = test_agents.SCRIPTED["default"]
    test_agents.SCRIPTED["default"] = lambda: agent().clone(hooks=_AgentHooks(seen))
    run = carry()
    first, again = seen[0], seen[1]
    assert first.response_id == again.response_id == "resp-1"
    assert again.usage.input_tokens_details.cached_tokens == 5
    assert again.usage.output_tokens_details.reasoning_tokens == 2
    assert again.output == first.output
    assert run.usage == {
        "requests": 2,
        "input_tokens": 17,
        "output_tokens": 8,
        "total_tokens": 25,
    }


class _AgentHooks(agents.AgentHooks[Any]):
    def __init__(self, seen: list[ModelResponse]) -> None:
        self.seen = seen

    async def on_llm_end(self, context: Any, agent: Any, response: ModelResponse) -> None:
        self.seen.append(response)


@pytest.mark.not_replayed
def test_a_replayed_response_is_streamed_as_one_event(
    openai_server: OpenAIServer, carry: Carry, monkeypatch: pytest.MonkeyPatch
) -> None:
    streams: list[list[str]] = []
    stream = agents.Runner.run_streamed

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = stream(*args, **kwargs)
        streams.append([])
        read, types = result.stream_events, streams[-1]

        async def stream_events() -> Any:
            async for event in read():
                if event.type == "raw_response_event":
                    types.append(event.data.type)
                yield event

        result.stream_events = stream_events  # type: ignore[method-assign]
        return result

    monkeypatch.setattr(agents.Runner, "run_streamed", watched)
    openai_server.enqueue(Call("add_group", {"name": "a"}), Cut(Reply("x"), events=1), "Done.")
    assert carry("http").final_output == "Done."
    first, second = streams
    assert "response.function_call_arguments.delta" in first
    turns = "".join("|" if kind == "response.completed" else "." for kind in second)
    assert turns.startswith("|.")  # The recorded response is one event, the next one is many.


def test_a_response_is_recorded_before_its_last_event_is_yielded(
    openai_server: OpenAIServer, carry: Carry, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    write, stream = journal_entries.write_entries, agents.Runner.run_streamed

    def noted(*args: Any, **kwargs: Any) -> Any:
        order.append("recorded")
        return write(*args, **kwargs)

    def watched(*args: Any, **kwargs: Any) -> Any:
        result = stream(*args, **kwargs)
        read = result.stream_events

        async def stream_events() -> Any:
            async for event in read():
                if event.type == "raw_response_event" and event.data.type == "response.completed":
                    order.append("seen")
                yield event

        result.stream_events = stream_events  # type: ignore[method-assign]
        return result

    monkeypatch.setattr(journal_entries, "write_entries", noted)
    monkeypatch.setattr(agents.Runner, "run_streamed", watched)
    openai_server.enqueue("Done.")
    carry("http")
    assert order == ["recorded", "seen"]


@pytest.mark.not_replayed
def test_changed_instructions_use_the_recorded_response_and_log_a_warning(
    scripted: Any, carry: Carry
) -> None:
    @function_tool
    def look() -> str:
        """Look."""
        return "sunny"

    model = scripted("default", call_tool("look"), AWAY, "Seen.", tools=[look])
    versions = iter(["Be short.", "Be long."])
    agent = test_agents.SCRIPTED["default"]
    test_agents.SCRIPTED["default"] = lambda: agent().clone(instructions=next(versions))
    run = carry()
    assert run.final_output == "Seen."
    assert len(model.calls) == 3
    [told] = payloads(run, "log")
    assert told["level"] == "warning"
    assert ":model:1" in told["message"]


# Where a model comes from


class Provider(ModelProvider):
    """A host's own provider."""

    def __init__(self, model: Model) -> None:
        self.model = model
        self.asked: list[str | None] = []

    def get_model(self, model_name: str | None) -> Model:
        self.asked.append(model_name)
        return self.model


@pytest.mark.parametrize("name", ["a name", None])
def test_models_of_a_hosts_own_provider_are_journaled(
    scripted: Any, carry: Carry, settings: Any, name: str | None
) -> None:
    provider = Provider(ScriptedModel([call_tool("look"), AWAY, [assistant_message("Seen.")]]))
    settings.AGENTIC_DJANGO_DEFAULT_RUN_OPTIONS = {"run_config": RunConfig(model_provider=provider)}
    calls = []

    @function_tool
    def look() -> str:
        """Look."""
        calls.append(1)
        return "sunny"

    scripted("default", model=name, tools=[look])
    run = carry()
    assert run.final_output == "Seen."
    assert len(calls) == 1
    assert len(provider.model.calls) == 3  # type: ignore[attr-defined]
    assert set(provider.asked) == {name}


def test_the_model_of_a_run_config_is_journaled(scripted: Any, carry: Carry, settings: Any) -> None:
    model = ScriptedModel([call_tool("look"), AWAY, [assistant_message("Seen.")]])
    settings.AGENTIC_DJANGO_DEFAULT_RUN_OPTIONS = {"run_config": RunConfig(model=model)}

    @function_tool
    def look() -> str:
        """Look."""
        return "sunny"

    own = scripted("default", "Not asked.", tools=[look])
    run = carry()
    assert run.final_output == "Seen."
    assert len(model.calls) == 3
    assert not own.calls


def test_an_agents_model_still_works_outside_runs(scripted: Any, carry: Carry) -> None:
    model = scripted("default", "One.", "Two.")
    shared = Agent(name="shared", model=model)
    test_agents.SCRIPTED["default"] = lambda: shared
    assert carry().final_output == "One."
    result = asyncio.run(Runner.run(shared, "Hello"))
    assert result.final_output == "Two."
    assert shared.model.calls == model.calls  # type: ignore[union-attr]


def test_the_model_of_an_agent_that_is_reused_is_wrapped_once(scripted: Any, carry: Carry) -> None:
    model = scripted("default", "One.", "Two.", "Three.")
    shared = Agent(name="shared", model=model, handoffs=[])
    shared.handoffs.append(shared)
    test_agents.SCRIPTED["default"] = lambda: shared
    assert [carry().final_output for _ in range(3)] == ["One.", "Two.", "Three."]
    assert shared.model.inner is model  # type: ignore[union-attr]


# Where a tool comes from


def look_tool(calls: list[Any]) -> FunctionTool:
    """Return a tool that counts its calls."""

    def look() -> str:
        """Look."""
        calls.append(current_step().idempotency_key)
        return "sunny"

    return function_tool(look)


@pytest.mark.parametrize("how", ["copied", "replaced", "cloned agent", "copied agent"])
def test_copies_of_agents_and_tools_are_journaled(scripted: Any, carry: Carry, how: str) -> None:
    calls: list[Any] = []
    model = scripted("default", "Once.", call_tool("look"), AWAY, "Seen.", tools=[look_tool(calls)])
    first = test_agents.SCRIPTED["default"]()
    test_agents.SCRIPTED["default"] = lambda: first
    assert carry().final_output == "Once."  # Now it is instrumented, and then copied.

    def copied() -> Agent[Any]:
        tool = first.tools[0]
        match how:
            case "copied":
                return Agent(name="copy", model=first.model, tools=[copy.copy(tool)])
            case "replaced":
                return Agent(name="copy", model=first.model, tools=[dataclasses.replace(tool)])
            case "cloned agent":
                return first.clone(name="copy")
        agent = copy.copy(first)
        agent.name = "copy"
        return agent

    test_agents.SCRIPTED["default"] = copied
    run = carry()
    assert run.final_output == "Seen."
    assert len(calls) == 1
    assert recorded(run) == [("model", "copy"), ("tool", "look"), ("model", "copy")]
    assert len(model.calls) == 4


def test_the_tools_of_a_copied_agent_are_its_own(scripted: Any, carry: Carry) -> None:
    scripted("default", "Not asked.")
    first = Agent(name="first", model=ScriptedModel([[assistant_message("One.")]]))
    test_agents.SCRIPTED["default"] = lambda: first
    assert carry().final_output == "One."
    calls: list[Any] = []
    second = copy.copy(first)
    second.model = ScriptedModel([call_tool("look"), [assistant_message("Two.")]])
    second.tools = [look_tool(calls)]
    test_agents.SCRIPTED["default"] = lambda: second
    assert carry().final_output == "Two."
    assert len(calls) == 1


async def by_function(ctx: ToolContext[Any], arguments: str) -> Any:
    """Return what was asked."""
    return {"asked": json.loads(arguments), "call": ctx.tool_call_id}


async def by_narrow_function(ctx: agents.RunContextWrapper[Any], arguments: str) -> Any:
    """Say what kind of context came."""
    return type(ctx).__name__


class Invoker:
    """An invoker that is an object."""

    suffix = "!"

    async def __call__(self, ctx: Any, arguments: str) -> str:
        return f"{arguments}{self.suffix}"

    async def method(self, ctx: Any, arguments: str) -> str:
        """Be a bound method."""
        return f"{arguments}?{self.suffix}"


async def with_suffix(suffix: str, ctx: Any, arguments: str) -> str:
    """Return what was asked and more."""
    return arguments + suffix


@pytest.mark.parametrize(
    ("invoker", "expected"),
    [
        (by_function, "{'asked': {'a': 1}, 'call': 'call-1'}"),
        (by_narrow_function, "RunContextWrapper"),
        (Invoker(), '{"a": 1}!'),
        (Invoker().method, '{"a": 1}?!'),
        (partial(with_suffix, "~"), '{"a": 1}~'),
    ],
    ids=["function", "function of a narrow context", "object", "method", "partial"],
)
def test_custom_invokers_are_journaled(
    scripted: Any, carry: Carry, invoker: Any, expected: str
) -> None:
    tool = FunctionTool(
        name="ask",
        description="Ask.",
        params_json_schema={"type": "object", "properties": {"a": {"type": "integer"}}},
        on_invoke_tool=invoker,
        strict_json_schema=False,
    )
    model = scripted("default", call_tool("ask", a=1), AWAY, "Done.", tools=[tool])
    run = carry()
    assert run.final_output == "Done."
    assert model.calls[1].input == model.calls[2].input
    assert model.calls[2].input[-1]["output"] == expected
    assert recorded(run)[1] == ("tool", "ask")


def test_custom_tools_are_journaled(scripted: Any, carry: Carry) -> None:
    calls = []

    async def invoke(ctx: Any, given: str) -> str:
        calls.append(given)
        return given.upper()

    tool = CustomTool(name="shout", description="Shout.", on_invoke_tool=invoke)
    asked = ResponseCustomToolCall(
        type="custom_tool_call", name="shout", input="hello", call_id="c1", id="ctc1"
    )
    model = scripted("default", streamed(asked), AWAY, "Done.", tools=[tool])
    run = carry()
    assert run.final_output == "Done."
    assert calls == ["hello"]
    assert model.calls[1].input == model.calls[2].input
    assert model.calls[2].input[-1]["output"] == "HELLO"
    assert payloads(run, "tool.called")[0]["arguments"] == "hello"


class Toolbox(MCPServer):
    """An MCP server within the process."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[Any] = []

    @property
    def name(self) -> str:
        return "toolbox"

    async def connect(self) -> None:
        """Nothing is to be connected."""

    async def cleanup(self) -> None:
        """Nothing is to be cleaned up."""

    async def list_tools(self, run_context: Any = None, agent: Any = None) -> Any:
        schema = {"type": "object", "properties": {"n": {"type": "integer"}}}
        return [mcp.types.Tool(name="double", description="Double.", input_schema=schema)]

    async def call_tool(self, tool_name: str, arguments: Any, meta: Any = None) -> Any:
        self.calls.append(arguments)
        text = mcp.types.TextContent(type="text", text=str(arguments["n"] * 2))
        return mcp.types.CallToolResult(content=[text])

    async def list_prompts(self) -> Any:
        raise NotImplementedError

    async def get_prompt(self, name: str, arguments: Any = None) -> Any:
        raise NotImplementedError


def test_tools_of_an_mcp_server_are_journaled(scripted: Any, carry: Carry) -> None:
    toolbox = Toolbox()
    model = scripted("default", call_tool("double", n=4), AWAY, "Done.", mcp_servers=[toolbox])
    run = carry()
    assert run.final_output == "Done."
    assert toolbox.calls == [{"n": 4}]
    assert model.calls[1].input == model.calls[2].input
    assert "8" in json.dumps(model.calls[2].input[-1]["output"])
    assert recorded(run)[1] == ("tool", "double")


@pytest.mark.not_replayed
def test_an_approval_rule_gets_typed_arguments(scripted: Any, carry: Carry) -> None:
    seen: list[Any] = []
    paid: list[int] = []

    async def is_large(ctx: Any, arguments: dict[str, Any], call_id: str) -> bool:
        seen.append(arguments["amount"])
        return bool(arguments["amount"] > 100)

    @function_tool(needs_approval=is_large)
    def pay(amount: int) -> str:
        """Pay."""
        paid.append(amount)
        return "paid"

    for n, amount in enumerate((7, 700, "8")):
        step = call_tool("pay", call_id=f"call-{n}", amount=amount)
        scripted("default", step, "Paid.", tools=[pay])
        carry()
    assert seen == [7, 700]
    assert paid == [7]  # Not "8": the rule would have seen another value than the tool.


def see() -> str:
    """See."""
    return "seen"


def test_the_same_call_has_the_same_key_in_every_attempt(scripted: Any, carry: Carry) -> None:
    keys: list[str] = []

    @function_tool(failure_error_function=None)
    async def look() -> str:
        """Fail twice."""
        keys.append(current_step().idempotency_key)
        if len(keys) < 3:
            raise AWAY
        return "sunny"

    scripted("default", call_tool("look"), "Seen.", tools=[look])
    run = carry()
    assert run.final_output == "Seen."
    assert len(keys) == 3
    assert len(set(keys)) == 1
    assert keys[0].startswith(f"{run.pk}:")


def test_current_step_raises_outside_tools() -> None:
    with pytest.raises(LookupError, match="tools and steps"):
        current_step()


# Time-outs of tools


@pytest.mark.parametrize("text_function", [None, "sync", "async"])
def test_a_tool_timeout_that_the_model_sees_is_recorded(
    scripted: Any, carry: Carry, text_function: str | None
) -> None:
    calls = []

    def text(ctx: Any, error: Exception) -> str:
        return f"Too slow: {type(error).__name__}"

    async def text_async(ctx: Any, error: Exception) -> str:
        return text(ctx, error)

    chosen: dict[str, Any] = {"sync": text, "async": text_async}

    @function_tool(timeout=0.05, timeout_error_function=chosen.get(text_function or ""))
    async def wait() -> str:
        """Wait."""
        calls.append(1)
        await asyncio.sleep(30)
        return "never"

    model = scripted("default", call_tool("wait"), AWAY, "Never mind.", tools=[wait])
    run = carry()
    assert run.final_output == "Never mind."
    assert len(calls) == 1
    assert model.calls[1].input == model.calls[2].input
    assert recorded(run)[1] == ("tool", "wait")
    assert payloads(run, "tool.output")[0]["duration_seconds"] >= 0.05


def test_a_tool_timeout_that_fails_the_run_is_recorded(scripted: Any, carry: Carry) -> None:
    calls = []

    @function_tool(timeout=0.05, timeout_behavior="raise_exception")
    async def wait() -> str:
        """Wait."""
        calls.append(1)
        await asyncio.sleep(30)
        return "never"

    scripted("default", call_tool("wait"), tools=[wait])
    run = carry()
    assert (run.status, run.error_code) == ("failed", "tool_timed_out")
    retry_agent_run(run)
    assert finish(run).error_code == "tool_timed_out"
    assert len(calls) == 1


# Agents within a run


def test_an_agent_as_tool_is_run_again_from_its_recorded_calls(scripted: Any, carry: Carry) -> None:
    calls: list[str] = []
    inner_model = ScriptedModel(
        [call_tool("look"), AWAY, [assistant_message("It is sunny.")]], default_usage=USAGE
    )
    inner = Agent(name="inner", model=inner_model, tools=[look_tool(calls)])
    ask = inner.as_tool(tool_name="ask", tool_description="Ask.", failure_error_function=None)
    model = scripted("default", call_tool("ask", input="?"), AWAY, "Sunny.", tools=[ask])
    run = carry()
    assert run.final_output == "Sunny."
    assert run.attempt == 3
    assert len(calls) == 1
    assert len(inner_model.calls) == 3
    assert len(model.calls) == 3
    assert model.calls[2].input[-1]["output"] == "It is sunny."
    assert run.usage["total_tokens"] == 4 * 15
    assert [kind for kind, _ in recorded(run)] == [
        "model",
        "model",
        "tool",
        "model",
        "child",
        "model",
    ]
    assert {e["agent"] for e in payloads(run, "message")} == {"default", "inner"}


@pytest.mark.parametrize("how", ["async", "sync"])
def test_an_agent_that_a_tool_runs_is_journaled(scripted: Any, carry: Carry, how: str) -> None:
    inner_model = ScriptedModel([[assistant_message("It is sunny.")]], default_usage=USAGE)
    inner = Agent(name="inner", model=inner_model)

    @function_tool(failure_error_function=None, name_override="ask")
    async def ask() -> str:
        """Ask another, then fail the first time."""
        result = await Runner.run(inner, "?")
        return _after(result)

    @function_tool(failure_error_function=None, name_override="ask")
    def ask_sync() -> str:
        """Ask another, then fail the first time; all without a loop of its own."""
        Group.objects.create(name=f"before {len(failed)}")
        result = Runner.run_sync(inner, "?")
        return _after(result)

    failed: list[int] = []

    def _after(result: Any) -> str:
        if not failed:
            failed.append(1)
            raise AWAY
        return str(result.final_output)

    scripted("default", call_tool("ask"), "Sunny.", tools=[ask if how == "async" else ask_sync])
    run = carry()
    assert run.final_output == "Sunny."
    assert run.attempt == 2
    assert len(inner_model.calls) == 1
    assert run.usage["total_tokens"] == 3 * 15


def test_an_agent_run_by_a_synchronous_tool_uses_the_event_loop_of_the_client(
    scripted: Any, carry: Carry, openai_server: OpenAIServer
) -> None:
    inner = Agent(name="inner", model="gpt-5-mini")

    @function_tool(failure_error_function=None)
    def ask() -> str:
        """Ask another."""
        return str(Runner.run_sync(inner, "?").final_output)

    scripted("default", model="gpt-5-mini", tools=[ask])
    for _ in range(3):
        openai_server.enqueue(Call("ask"), "Inner.", "Outer.")
        assert carry().final_output == "Outer."


def test_an_agent_run_by_a_guardrail_is_journaled_and_counted(scripted: Any, carry: Carry) -> None:
    guard_model = ScriptedModel([[assistant_message("fine")]], default_usage=USAGE)
    guard = Agent(name="guard", model=guard_model)

    @agents.input_guardrail
    async def check(context: Any, agent: Any, given: Any) -> agents.GuardrailFunctionOutput:
        result = await Runner.run(guard, "?")
        return agents.GuardrailFunctionOutput(result.final_output, False)

    @function_tool
    def look() -> str:
        """Look."""
        return "sunny"

    steps = [call_tool("look"), AWAY, "Seen."]
    scripted("default", *steps, tools=[look], input_guardrails=[check])
    run = carry()
    assert run.final_output == "Seen."
    assert len(guard_model.calls) == 1
    assert run.usage["total_tokens"] == 3 * 15


def test_an_agent_with_a_slash_in_its_name_is_not_nested(scripted: Any, carry: Carry) -> None:
    scripted("default", AWAY, "Hello.", name="sales/refunds" + "x" * 300)
    run = carry()
    assert run.final_output == "Hello."
    visibilities = run.events.filter(event_type="message").values_list("visibility", flat=True)
    assert set(visibilities) == {"user"}


def test_an_agent_reached_by_a_handoff_object_is_journaled(scripted: Any, carry: Carry) -> None:
    calls: list[str] = []
    there = Agent(
        name="there",
        model=ScriptedModel([call_tool("look"), AWAY, [assistant_message("Seen.")]]),
        tools=[look_tool(calls)],
    )
    transfer = call_tool("transfer_to_there", call_id="call-0")
    scripted("default", transfer, handoffs=[agents.handoff(there)])
    run = carry()
    assert run.final_output == "Seen."
    assert len(calls) == 1
    assert [e["agent"] for e in payloads(run, "agent.updated")] == ["default", "there"]


class HostRunner(AgentRunner):
    """A default runner that a host has put in place."""

    used = 0

    def run_streamed(self, *args: Any, **kwargs: Any) -> Any:
        type(self).used += 1
        return super().run_streamed(*args, **kwargs)


@pytest.fixture
def host_runner() -> Iterator[type[HostRunner]]:
    """Put a host's own runner in place, as the default of the process."""
    before = get_default_agent_runner()
    HostRunner.used = 0
    set_default_agent_runner(HostRunner())
    yield HostRunner
    set_default_agent_runner(before)


@pytest.mark.not_replayed
def test_a_hosts_default_runner_is_still_used(
    scripted: Any, carry: Carry, host_runner: type[HostRunner]
) -> None:
    model = scripted("default", call_tool("look"), AWAY, "Seen.", tools=[look_tool([])])
    run = carry()
    assert run.final_output == "Seen."
    assert host_runner.used == 2
    assert len(model.calls) == 3


class CloningRunner(AgentRunner):
    """A default runner of another library, which copies the agent that it runs."""

    copied: Any = staticmethod(copy.copy)

    def run_streamed(self, starting_agent: Any, *args: Any, **kwargs: Any) -> Any:
        return super().run_streamed(self.copied(starting_agent), *args, **kwargs)

    async def run(self, starting_agent: Any, *args: Any, **kwargs: Any) -> Any:
        return await super().run(self.copied(starting_agent), *args, **kwargs)


@pytest.fixture(params=[copy.copy, dataclasses.replace, Agent.clone])
def cloning_runner(request: Any) -> Iterator[None]:
    """Make a runner that copies agents the default of the process."""
    before = get_default_agent_runner()
    runner = CloningRunner()
    runner.copied = request.param
    set_default_agent_runner(runner)
    yield
    set_default_agent_runner(before)


def test_an_agent_that_another_library_copies_is_journaled(
    scripted: Any, carry: Carry, cloning_runner: None
) -> None:
    calls: list[str] = []
    there = Agent(
        name="there",
        model=ScriptedModel([call_tool("look"), AWAY, [assistant_message("Seen.")]]),
        tools=[look_tool(calls)],
    )
    steps = call_tool("see", call_id="c0"), call_tool("transfer_to_there", call_id="c1")
    scripted("default", *steps, tools=[function_tool(see)], handoffs=[there])
    run = carry()
    assert run.final_output == "Seen."
    assert len(calls) == 1
    assert recorded(run) == [
        ("model", "default"),
        ("tool", "see"),
        ("model", "default"),
        ("model", "there"),
        ("tool", "look"),
        ("model", "there"),
    ]


def test_an_approved_call_of_a_copied_agent_is_made_once(
    scripted: Any, carry: Carry, cloning_runner: None
) -> None:
    paid: list[int] = []

    @function_tool(needs_approval=True)
    def pay(amount: int) -> str:
        """Pay."""
        paid.append(amount)
        return "paid"

    steps = [call_tool("pay", call_id=f"c{n}", amount=n) for n in (1, 2)]
    scripted("default", *steps, "Paid.", tools=[pay])
    run = carry()
    for _ in range(2):
        assert run.status == "waiting"
        decide_approval(run.approvals.get(decision=""), True)
        run = finish(run)
    assert run.final_output == "Paid."
    assert paid == [1, 2]


class ListingAgent(Agent[Any]):
    """An agent whose class lists its tools itself."""

    async def get_all_tools(self, run_context: Any) -> Any:
        return list(self.tools)


def test_an_agent_class_with_a_tool_list_of_its_own_is_journaled(
    scripted: Any, carry: Carry
) -> None:
    calls: list[str] = []
    model = ScriptedModel([call_tool("look"), AWAY, [assistant_message("Seen.")]])
    there = ListingAgent(name="there", model=model, tools=[look_tool(calls)])
    scripted("default", call_tool("transfer_to_there", call_id="c0"), handoffs=[there])
    run = carry()
    assert run.final_output == "Seen."
    assert len(calls) == 1
    assert ("tool", "look") in recorded(run)


def test_nothing_is_recorded_outside_runs(carry: Carry, scripted: Any) -> None:
    scripted("default", "One.")
    carry()  # Whatever is installed is installed now.
    model = ScriptedModel([call_tool("look"), [assistant_message("Two.")]])
    calls: list[Any] = []

    @function_tool
    def look() -> str:
        """Look."""
        calls.append(current_scope())
        return "sunny"

    agent = Agent(name="alone", model=model, tools=[look])
    assert asyncio.run(Runner.run(agent, "Hello")).final_output == "Two."
    assert calls == [None]


# At most once


@pytest.mark.parametrize("copied", [lambda tool: tool, copy.copy, dataclasses.replace])
def test_a_call_of_an_at_most_once_tool_is_not_repeated(
    scripted: Any, carry: Carry, copied: Any
) -> None:
    calls = []

    @at_most_once
    @function_tool(failure_error_function=None)
    def pay() -> str:
        """Pay, and then lose the way home."""
        calls.append(1)
        raise AWAY

    scripted("default", call_tool("pay"), "Paid.", tools=[copied(pay)])
    run = carry()
    assert (run.status, run.attempt) == ("waiting", 2)
    assert len(calls) == 1
    resolve_approval(run.approvals.get(), "fail")
    assert (finish(run).status, run.error_code) == ("failed", "unresolved_intent")
    assert "pay" in run.error_detail
    retry_agent_run(run)
    assert finish(run).status == "waiting"
    assert len(calls) == 1


def test_a_recorded_result_of_an_at_most_once_tool_is_replayed(scripted: Any, carry: Carry) -> None:
    calls = []

    @at_most_once
    @function_tool
    def pay() -> str:
        """Pay."""
        calls.append(1)
        return "paid"

    scripted("default", call_tool("pay"), AWAY, "Paid.", tools=[copy.copy(pay)])
    run = carry()
    assert run.final_output == "Paid."
    assert len(calls) == 1
    assert recorded(run) == [("model", "default"), ("tool", "pay"), ("model", "default")]
