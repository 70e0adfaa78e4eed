"""The agents of the tests: real SDK agents on the SDK's own ``ScriptedModel``.

Some need no script, answer from their input alone and therefore work in any process. Every key
can be scripted within a test through the ``scripted`` fixture, which fills ``SCRIPTED``.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from functools import partial
from typing import Any

from agents import Agent, function_tool
from agents.testing import (
    ModelCall,
    ModelStep,
    ScriptedModel,
    assistant_message,
    function_call,
)
from agents.usage import Usage
from django.contrib.auth.models import Group

type Factory = Callable[[], Agent[Any]]

USAGE = Usage(requests=1, input_tokens=10, output_tokens=5, total_tokens=15)
MODEL_CALLS = 50  # As many as any test makes with one agent.

SCRIPTED: dict[str, Factory] = {}


@function_tool(name_override="add_group")
def add_group(name: str) -> str:
    """Create a group and say how many there are (synchronous ORM)."""
    Group.objects.get_or_create(name=name)
    return f"{Group.objects.count()} groups"


@function_tool(name_override="add_group")
async def add_group_async(name: str) -> str:
    """Create a group and say how many there are (asynchronous ORM)."""
    await Group.objects.aget_or_create(name=name)
    return f"{await Group.objects.acount()} groups"


def last_text(call: ModelCall) -> str:
    """Return the text of the newest input item: what the user said or a tool gave back."""
    if isinstance(call.input, str):
        return call.input
    item = call.input[-1]
    content = item.get("output", item.get("content", ""))
    if isinstance(content, str):
        return content
    return "".join(part.get("text", "") for part in content)


def is_tool_output(call: ModelCall) -> bool:
    """Whether the newest input item is a tool's output."""
    newest = call.input[-1] if isinstance(call.input, list) else {}
    return newest.get("type") == "function_call_output"


def answering(respond: Callable[[ModelCall], Any]) -> ScriptedModel:
    """Return a model that makes each answer from the call it gets."""
    return ScriptedModel([ModelStep.respond(respond)] * MODEL_CALLS, default_usage=USAGE)


def echo() -> Agent[Any]:
    """Repeat what was said."""
    model = answering(lambda call: [assistant_message(f"You said: {last_text(call)}")])
    return Agent(name="echo", instructions="Repeat.", model=model)


def _use_tool(call: ModelCall) -> Any:
    if is_tool_output(call):
        return [assistant_message(f"Done: {last_text(call)}")]
    return [function_call("add_group", {"name": last_text(call)}, call_id="call-1")]


def with_tool(tool: Any) -> Agent[Any]:
    """Call a tool with what was said, then tell what the tool gave back."""
    return Agent(name="grouper", instructions="Group.", model=answering(_use_tool), tools=[tool])


def slow() -> Agent[Any]:
    """Wait as many seconds as was said, then answer."""

    async def respond(call: ModelCall) -> Any:
        seconds = float(last_text(call))
        await asyncio.sleep(seconds)
        return [assistant_message(f"Waited {seconds:g} s")]

    return Agent(name="slow", instructions="Wait.", model=answering(respond))


def broken() -> Agent[Any]:
    """Fail at each model call, with what was said as the (secret) reason."""
    model = answering(lambda call: RuntimeError(f"secret: {last_text(call)}"))
    return Agent(name="broken", instructions="Fail.", model=model)


def over_http() -> Agent[Any]:
    """Ask the real provider's client, which finds its server through ``OPENAI_BASE_URL``."""
    return Agent(name="http", instructions="Group.", model="gpt-5-mini", tools=[add_group])


def asks() -> Agent[Any]:
    """Make a group, if a person approves."""

    @function_tool(name_override="add_group", needs_approval=True)
    def gated(name: str) -> str:
        """Create a group."""
        return str(Group.objects.get_or_create(name=name)[0])

    return Agent(name="asks", instructions="Group.", model=answering(_use_tool), tools=[gated])


BUILT_IN: dict[str, Factory] = {
    "default": echo,
    "echo": echo,
    "sync_tool": partial(with_tool, add_group),
    "async_tool": partial(with_tool, add_group_async),
    "slow": slow,
    "broken": broken,
    "asks": asks,
    "http": over_http,
}


def _make(key: str) -> Agent[Any]:
    return SCRIPTED.get(key, BUILT_IN.get(key, echo))()


def agents() -> dict[str, Factory]:
    """Return every agent by its key; what the settings name as the registry."""
    return {key: partial(_make, key) for key in (*BUILT_IN, *SCRIPTED)}


def script(key: str, *steps: Any, **agent: Any) -> ScriptedModel:
    """Put an agent with these model steps under a key; a str stands for a final answer.

    The agent is made anew for each attempt, on the one returned model. Other keywords are the
    agent's: ``tools``, ``output_type``, ``handoffs`` and so on.
    """
    model = ScriptedModel([_step(step) for step in steps], default_usage=USAGE)
    options = {"name": key, "instructions": "Follow the script.", "model": model, **agent}
    SCRIPTED[key] = lambda: Agent(**options)
    return model


def _step(step: Any) -> Any:
    return [assistant_message(step)] if isinstance(step, str) else step


def call_tool(name: str, /, *, call_id: str = "call-1", **arguments: Any) -> Any:
    """Return the model step that calls one tool."""
    return [function_call(name, json.dumps(arguments), call_id=call_id)]
