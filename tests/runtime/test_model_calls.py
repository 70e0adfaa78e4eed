"""Loops that a host writes by hand, over the SDK's models; what they answered is recorded."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from agents import Agent, Runner
from agents.models.interface import Model
from agents.testing import ScriptedModel, assistant_message, function_call
from asgiref.sync import async_to_sync

from agentic_django.exceptions import BadInput, BadSetting
from agentic_django.models import AgentRun
from agentic_django.openai_agents import providers
from agentic_django.runtime import RunContext, RunResult, Tool, ToolRegistry, model_calls
from agentic_django.runtime import messages as generation
from tests.support.agents import USAGE
from tests.support.attempts import AWAY, payloads, recorded
from tests.support.openai_server import Call, Failure, OpenAIServer, Reply
from tests.support.rows import make_session

pytestmark = pytest.mark.django_db

type Carry = Callable[..., AgentRun]
type Register = Callable[..., None]


def scripted_model(*answers: Any) -> ScriptedModel:
    """Return a model that answers so; a str is a text."""
    steps = [[assistant_message(a)] if isinstance(a, str) else a for a in answers]
    return ScriptedModel(steps, default_usage=USAGE)


def calls_of() -> tuple[ToolRegistry, list[str]]:
    """Return tools, and the calls that they note."""
    calls: list[str] = []

    def add(a: int, b: int) -> int:
        """Add."""
        calls.append(f"add {a} {b}")
        return a + b

    tools = ToolRegistry()
    tools.register(add)
    return tools, calls


def loop(tools: ToolRegistry, model: Any = None, *, lose: int = 0) -> Any:
    """Return a hand-written loop: ask, call, ask again, until the model calls nothing.

    The first attempt is lost behind so many answers.
    """

    async def run(ctx: RunContext) -> RunResult:
        messages: list[Any] = [{"role": "system", "content": "Add."}, *ctx.input_messages]
        for n in range(1, 6):
            answer = await ctx.generate(messages, tools=tools, model=model)
            messages.append(answer.message)
            if n == lose and ctx.run.attempt == 1:
                raise AWAY
            if not answer.tool_calls:
                return RunResult(answer.message.content, messages)
            for call in answer.tool_calls:
                function = call["function"]
                output = await tools.execute(
                    function["name"], function["arguments"], call_id=call["id"]
                )
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": output})
        raise AssertionError("The model does not come to an end.")

    return run


def adding(call_id: str, a: int, b: int) -> Any:
    """Return the call of the tool."""
    return function_call("add", {"a": a, "b": b}, call_id=call_id)


# A loop by hand


@pytest.mark.parametrize("lose", [0, 1, 2, 3])
def test_a_hand_written_loop_is_replayed_without_repeated_calls(
    register: Register, carry: Carry, lose: int, user: Any
) -> None:
    tools, calls = calls_of()
    model = scripted_model(
        [adding("c1", 1, 2), adding("c2", 3, 4)], [adding("c3", 3, 7)], "It is ten."
    )
    register(loop(tools, model, lose=lose))
    session = make_session(user)
    run = carry("work", session=session)
    assert run.final_output == "It is ten."
    assert run.attempt == (2 if lose else 1)
    assert calls == ["add 1 2", "add 3 4", "add 3 7"]
    assert len(model.calls) == 3
    assert run.usage["total_tokens"] == 45
    kinds = [kind for kind, _ in recorded(run)]
    assert kinds == ["model", "tool", "tool", "model", "tool", "model"]
    history = session.get_message_history()
    assert [message["role"] for message in history] == [
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
        "tool",
        "assistant",
    ]
    assert [call["id"] for call in history[1]["tool_calls"]] == ["c1", "c2"]
    assert history[2] == {"role": "tool", "tool_call_id": "c1", "content": "3"}
    assert session.get_last_assistant_message() == history[-1]


def test_the_model_is_called_with_the_sdks_items(register: Register, carry: Carry) -> None:
    tools, _ = calls_of()
    model = scripted_model([adding("c1", 1, 2)], "Three.")
    register(loop(tools, model))
    carry("work")
    first, second = model.calls
    assert first.system_instructions == "Add."
    assert first.input == [{"role": "user", "content": "Hello"}]
    assert [tool.name for tool in first.tools] == ["add"]
    assert second.input[1:] == [
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": '{"a":1,"b":2}'},
        {"type": "function_call_output", "call_id": "c1", "output": "3"},
    ]


def test_an_answer_has_a_message_with_role_content_and_calls(
    register: Register, carry: Carry
) -> None:
    answers = []

    async def run(ctx: RunContext) -> None:
        model = scripted_model([assistant_message("Let me see."), adding("c1", 1, 2)])
        answers.append(await ctx.generate(ctx.input_messages, model=model))

    register(run)
    carry("work")
    [answer] = answers
    assert answer.message.role == "assistant"
    assert answer.message.content == "Let me see."
    called = {"name": "add", "arguments": '{"a":1,"b":2}'}
    assert answer.tool_calls == ({"id": "c1", "type": "function", "function": called},)
    assert answer.message.tool_calls == answer.tool_calls
    assert answer.message.to_dict() == {
        "role": "assistant",
        "content": "Let me see.",
        "tool_calls": list(answer.tool_calls),
    }
    assert answer.response.usage.total_tokens == 15


def test_answers_and_tool_calls_have_the_events_of_an_agents(
    register: Register, carry: Carry
) -> None:
    tools, _ = calls_of()
    register(loop(tools, scripted_model([adding("c1", 1, 2)], "Three.")))
    run = carry("work")
    [called] = payloads(run, "tool.called")
    assert (called["tool"], called["arguments"]) == ("add", {"a": 1, "b": 2})
    [output] = payloads(run, "tool.output")
    assert (output["call_id"], output["output"]) == ("c1", 3)
    assert [told["text"] for told in payloads(run, "message")] == ["Three."]


def test_the_same_question_asked_twice_gets_two_answers(register: Register, carry: Carry) -> None:
    model = scripted_model("One.", "Two.", "Three.")

    async def run(ctx: RunContext) -> list[Any]:
        answers = [await ctx.generate(ctx.input_messages, model=model) for _ in range(2)]
        if ctx.run.attempt == 1:
            raise AWAY
        answers.append(await ctx.generate(ctx.input_messages, model=model))
        return [answer.message.content for answer in answers]

    register(run)
    assert carry("work").final_output == ["One.", "Two.", "Three."]
    assert len(model.calls) == 3


def test_model_calls_may_be_gathered(register: Register, carry: Carry) -> None:
    model = ScriptedModel(
        [[assistant_message(f"Answer {n}.")] for n in range(20)], default_usage=USAGE
    )

    async def run(ctx: RunContext) -> list[Any]:
        asked = [[{"role": "user", "content": f"Question {n // 2}"}] for n in range(20)]
        answers = await asyncio.gather(*(ctx.generate(a, model=model) for a in asked))
        if ctx.run.attempt == 1:
            raise AWAY
        return [answer.message.content for answer in answers]

    register(run)
    run_ = carry("work")
    assert sorted(run_.final_output) == sorted(f"Answer {n}." for n in range(20))
    assert len(model.calls) == 20
    assert run_.usage["requests"] == 20


def test_a_failed_model_call_may_be_repeated(register: Register, carry: Carry) -> None:
    model = scripted_model(ValueError("Not now."), "Here.")

    async def run(ctx: RunContext) -> Any:
        try:
            answer = await ctx.generate(ctx.input_messages, model=model)
        except ValueError:
            answer = await ctx.generate(ctx.input_messages, model=model)
        if ctx.run.attempt == 1:
            raise AWAY
        return answer.message.content

    register(run)
    assert carry("work").final_output == "Here."
    assert len(model.calls) == 2


def test_a_stream_of_a_model_is_recorded_too(register: Register, carry: Carry) -> None:
    model = scripted_model("Streamed.")

    async def run(ctx: RunContext) -> Any:
        result = Runner.run_streamed(Agent(name="sdk", model=ctx.model(model)), "Go.")
        kinds = [event.type async for event in result.stream_events()]
        if ctx.run.attempt == 1:
            raise AWAY
        return [result.final_output, bool(kinds)]

    register(run)
    assert carry("work").final_output == ["Streamed.", True]
    assert len(model.calls) == 1


def test_tools_are_a_registry_or_tools_of_any_kind(register: Register, carry: Carry) -> None:
    tools, _ = calls_of()
    [function_tool] = tools
    model = scripted_model(*["Fine."] * 4)

    async def run(ctx: RunContext) -> None:
        ours = [Tool(function_tool)]
        for given in (tools, ours, [function_tool], tools.to_openai_format()):
            await ctx.generate(ctx.input_messages, tools=given, model=model)

    register(run)
    assert carry("work").status == "completed"
    schemas = [call.tools[0].params_json_schema for call in model.calls]
    assert [call.tools[0].name for call in model.calls] == ["add"] * 4
    assert schemas == [function_tool.params_json_schema] * 4


def test_options_are_those_of_the_sdks_model_settings(register: Register, carry: Carry) -> None:
    model = scripted_model("Fine.")

    async def run(ctx: RunContext) -> None:
        await ctx.generate(ctx.input_messages, model=model, temperature=0.2, max_tokens=5)

    register(run)
    carry("work")
    asked = model.calls[0].model_settings
    assert (asked.temperature, asked.max_tokens) == (0.2, 5)


def test_an_unknown_model_option_is_refused() -> None:
    with pytest.raises(BadInput, match=r"temprature.*Did you mean 'temperature'"):
        async_to_sync(model_calls.generate)([], using=scripted_model("Hi."), temprature=0)


def test_a_model_may_be_called_outside_a_run() -> None:
    model = scripted_model("Fine.")
    asked = [{"role": "user", "content": "?"}]
    answer = async_to_sync(model_calls.generate)(asked, using=model)
    assert answer.message.content == "Fine."
    assert not AgentRun.objects.exists()


# Messages


def test_messages_are_converted_to_the_sdks_items() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
    item = {"type": "function_call_output", "call_id": "c0", "output": "x"}
    messages = [
        {"role": "system", "content": "Be kind."},
        {"role": "developer", "content": "Be short."},
        {"role": "user", "content": "Hello"},
        generation.Message("assistant", None, (call,)),
        {"role": "tool", "tool_call_id": "c1", "content": {"sky": "blue"}},
        {"role": "assistant", "content": "Blue."},
        item,
    ]
    assert generation.system_instructions(messages) == "Be kind.\n\nBe short."
    assert generation.to_input_items(messages) == [
        {"role": "user", "content": "Hello"},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": '{"sky":"blue"}'},
        {"role": "assistant", "content": "Blue."},
        item,
    ]


def test_parts_of_messages_are_converted_to_the_sdks() -> None:
    hello = {"type": "text", "text": "Hello"}
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}
    custom = {"id": "c1", "type": "custom", "custom": {"name": "sql", "input": "SELECT 1"}}
    messages = [
        {"role": "system", "content": [{"type": "text", "text": "You are."}]},
        {"role": "user", "content": [hello, picture]},
        {"role": "assistant", "content": [hello], "tool_calls": [custom]},
        {"role": "tool", "tool_call_id": "c1", "content": "1"},
    ]
    assert generation.system_instructions(messages) == "You are."
    shown = {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "auto"}
    assert generation.to_input_items(messages) == [
        {"role": "user", "content": [{"type": "input_text", "text": "Hello"}, shown]},
        {"role": "assistant", "content": "Hello"},
        {"type": "custom_tool_call", "call_id": "c1", "name": "sql", "input": "SELECT 1"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "1"},
    ]


def test_a_message_of_an_unknown_role_is_refused() -> None:
    with pytest.raises(BadInput, match="has the role 'robot'; use system, user"):
        generation.to_input_items([{"role": "robot", "content": "Beep."}])


# Models by name


def test_without_a_name_the_default_model_is_used(settings: Any) -> None:
    with pytest.raises(BadSetting, match="set AGENTIC_DJANGO_DEFAULT_MODEL"):
        providers.get_model()
    settings.AGENTIC_DJANGO_DEFAULT_MODEL = "foo/bar"
    with pytest.raises(BadSetting, match="Unknown model 'foo/bar': Unknown prefix: foo"):
        providers.get_model()


def test_a_prefix_whose_package_is_missing_fails_with_a_clear_error() -> None:
    with pytest.raises(BadSetting, match="Unknown model 'litellm/x': `litellm` is required"):
        providers.get_model("litellm/x")


def test_a_run_without_a_model_fails_with_a_clear_error(register: Register, carry: Carry) -> None:
    async def run(ctx: RunContext) -> None:
        await ctx.generate(ctx.input_messages)

    register(run)
    assert carry("work").error_code == "bad_setting"


def test_a_journaled_model_is_not_wrapped_again() -> None:
    model = providers.get_model(scripted_model("Fine."))
    assert isinstance(model, Model)
    assert providers.get_model(model) is model


# Over HTTP


def names_of(body: dict[str, Any]) -> list[str]:
    """Return the names of the tools that a request tells of."""
    return [tool["name"] for tool in body["tools"]]


@pytest.mark.parametrize("name", ["gpt-5-mini", "openai/gpt-5-mini", None])
def test_a_loop_over_http_is_replayed_without_repeated_requests(
    register: Register, carry: Carry, openai_server: OpenAIServer, settings: Any, name: Any
) -> None:
    settings.AGENTIC_DJANGO_DEFAULT_MODEL = "gpt-5-mini"
    openai_server.enqueue(Reply(Call("add", {"a": 1, "b": 2}, "c1")), "Three.")
    tools, calls = calls_of()
    register(loop(tools, name, lose=2))
    run = carry("work")
    assert run.final_output == "Three."
    assert (run.attempt, calls) == (2, ["add 1 2"])
    first, second = openai_server.requests
    assert first["model"] == "gpt-5-mini"
    assert first["instructions"] == "Add."
    assert names_of(first) == ["add"]
    assert [item.get("type") or item["role"] for item in second["input"]] == [
        "user",
        "function_call",
        "function_call_output",
    ]
    assert run.usage["total_tokens"] == 30


def test_the_next_attempt_calls_a_busy_provider_again(
    register: Register, carry: Carry, openai_server: OpenAIServer, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_DEFAULT_MODEL = "gpt-5-mini"
    openai_server.enqueue("First.", *[Failure(503)] * 3, "Second.")

    async def run(ctx: RunContext) -> list[Any]:
        asked = [[{"role": "user", "content": text}] for text in ("a", "b")]
        return [(await ctx.generate(question)).message.content for question in asked]

    register(run)
    run_ = carry("work")
    assert run_.final_output == ["First.", "Second."]
    assert run_.attempt == 2
    assert openai_server.remaining == 0


def test_consecutive_event_loops_reach_the_provider(
    openai_server: OpenAIServer, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_DEFAULT_MODEL = "gpt-5-mini"
    openai_server.answer_with(lambda body: Reply("Fine."))
    asked = [{"role": "user", "content": "?"}]
    for _ in range(6):
        assert asyncio.run(model_calls.generate(asked)).message.content == "Fine."
