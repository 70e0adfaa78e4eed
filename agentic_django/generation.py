"""One call of a model, for loops that a host writes by hand; recorded within a run.

Messages are those of OpenAI's chat format: ``role`` (system, user, assistant, tool),
``content``, ``tool_calls`` and ``tool_call_id``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

import agents
import httpx2
import openai
from agents.items import ModelResponse
from agents.models._openai_shared import get_default_openai_client, get_default_openai_key
from agents.models.interface import Model, ModelTracing
from agents.models.multi_provider import MultiProvider
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage

from agentic_django import threads
from agentic_django.conf import settings
from agentic_django.exceptions import BadInput, BadSetting
from agentic_django.journaled import journaled_model
from agentic_django.serialization import dumps, from_part, text_of, to_jsonable

__all__ = ["Answer", "Message", "generate", "given_items", "items_of", "model", "provider"]


@dataclass(frozen=True, slots=True)
class Message:
    """What a model said: text, and the tools that it wants called."""

    role: str
    content: str | None
    tool_calls: Sequence[dict[str, Any]] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """Return the message in the chat format, to be put behind the others."""
        plain: dict[str, Any] = {"role": self.role, "content": self.content}
        return {**plain, "tool_calls": list(self.tool_calls)} if self.tool_calls else plain


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer, and the SDK's response from which it is made."""

    message: Message
    response: ModelResponse

    @property
    def tool_calls(self) -> Sequence[dict[str, Any]]:
        """The calls that the model wants: id, type and function (name, arguments as JSON)."""
        return self.message.tool_calls


_shared: list[MultiProvider] = []


def provider() -> MultiProvider:
    """Return the process's own provider, so that its connections outlast a run.

    On a loop of a host's own it is a fresh one that keeps no connections: the SDK's client is
    shared by all loops, and its connections are of use on one.
    """
    loop = _running_loop()
    if loop is not None and not threads.is_own(loop):
        return MultiProvider(openai_client=_client())
    if not _shared:
        _shared.append(MultiProvider())
    return _shared[0]


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _client() -> openai.AsyncOpenAI | None:
    """Return a client without connections; None if the host has one, or no key for OpenAI."""
    if get_default_openai_client() is not None:
        return None
    limits = httpx2.Limits(max_keepalive_connections=0)
    with suppress(openai.OpenAIError):
        return openai.AsyncOpenAI(
            api_key=get_default_openai_key(),
            http_client=openai.DefaultAsyncHttpx2Client(limits=limits),
        )
    return None


def model(name: str | Model | None = None) -> Model:
    """Return a model, journaled: an instance, or one by name (``litellm/…`` names others).

    Without a name it is ``AGENTIC_DJANGO_DEFAULT_MODEL``; raises BadSetting without that.
    """
    if isinstance(name, Model):
        return journaled_model(name)
    name = name or settings.DEFAULT_MODEL
    if name is None:
        raise BadSetting("Name a model, or set AGENTIC_DJANGO_DEFAULT_MODEL.")
    try:
        return journaled_model(provider().get_model(name))
    except (agents.UserError, ImportError) as error:
        raise BadSetting(f"There is no model {name!r}: {error}") from error


async def generate(
    messages: Sequence[Any],
    *,
    tools: Iterable[Any] = (),
    using: str | Model | None = None,
    **options: Any,
) -> Answer:
    """Ask a model once. ``options`` are fields of the SDK's ``ModelSettings``.

    ``tools`` are a ToolRegistry, or tools: ours, the SDK's, or as OpenAI's chat API describes
    them.
    """
    _check_options(options)
    response = await model(using).get_response(
        instructions_of(messages),
        items_of(messages),
        agents.ModelSettings(**options),
        [_tool(tool) for tool in tools],
        None,
        [],
        ModelTracing.DISABLED,
        previous_response_id=None,
        conversation_id=None,
        prompt=None,
    )
    return Answer(_message(response), response)


def _check_options(options: Mapping[str, Any]) -> None:
    """Raise BadInput for what the SDK's settings do not have; they would ignore it."""
    known = [option.name for option in fields(agents.ModelSettings)]
    for name in options.keys() - set(known):
        near = get_close_matches(name, known, 1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        raise BadInput(f"There is no option {name!r} of a model.{hint}")


def _tool(given: Any) -> Any:
    """Return a tool as the SDK has it; it is only told of here, and never called."""
    if not isinstance(given, Mapping):
        return getattr(given, "function_tool", given)
    told = given["function"]
    return agents.FunctionTool(
        name=told["name"],
        description=told.get("description", ""),
        params_json_schema=told.get("parameters", {}),
        on_invoke_tool=_never_called,
        strict_json_schema=told.get("strict", False),
    )


async def _never_called(context: Any, arguments: str) -> Any:
    raise NotImplementedError("Call the tool yourself; the model was only told of it.")


def items_of(messages: Sequence[Any], *, system: bool = False) -> list[Any]:
    """Return the SDK's input items for messages in the chat format, the system's only if asked.

    Raises BadInput for what is no list, and for a message that cannot be read.
    """
    if isinstance(messages, str | Mapping):
        raise BadInput(f"Give a list of messages, not {type(messages).__name__}.")
    plain = [m.to_dict() if isinstance(m, Message) else m for m in messages]
    items = [item for m in plain for item in _read(to_jsonable(m, "message"), system=system)]
    custom = {item["call_id"] for item in items if item.get("type") == "custom_tool_call"}
    for item in items:
        if item.get("type") == "function_call_output" and item["call_id"] in custom:
            item["type"] = "custom_tool_call_output"
    return items


def given_items(messages: Sequence[Any]) -> list[Any]:
    """Return the SDK's input items for a run's input; what is no message stays as it is."""
    found: list[Any] = []
    for message in messages:
        try:
            found += items_of([message], system=True)
        except BadInput:
            found.append(message)
    return found


def instructions_of(messages: Sequence[Any]) -> str | None:
    """Return the words of the system among messages in the chat format."""
    plain = [m for m in messages if not isinstance(m, Message)]
    said = [str(_text(m["content"])) for m in plain if m.get("role") in _SYSTEM]
    return "\n\n".join(said) or None


_SYSTEM = ("system", "developer")


def _read(message: Any, *, system: bool) -> list[Any]:
    if not isinstance(message, Mapping):
        raise BadInput(f"A message is a dict with a role, not {type(message).__name__}.")
    try:
        return _items(message, system=system)
    except (KeyError, TypeError, AttributeError) as error:
        role = message.get("role")
        raise BadInput(f"A message of the role {role!r} cannot be read: {error!r}.") from error


def _items(message: Mapping[str, Any], *, system: bool) -> list[Any]:
    if "type" in message:  # An item of the SDK's.
        return [dict(message)]
    match message.get("role"):
        case "system" | "developer" as role:
            return [{"role": role, "content": _text(message["content"])}] if system else []
        case "user":
            content = message["content"]
            parts = [from_part(p) for p in content] if isinstance(content, list) else content
            return [{"role": "user", "content": parts}]
        case "assistant":
            said = [{"role": "assistant", "content": _text(message.get("content"))}]
            calls = [_call(call) for call in message.get("tool_calls") or ()]
            return [*(said if said[0]["content"] else []), *calls]
        case "tool":
            call_id, output = message["tool_call_id"], message["content"]
            text = output if isinstance(output, str) else dumps(output)
            return [{"type": "function_call_output", "call_id": call_id, "output": text}]
    raise BadInput(
        f"A message has the role {message.get('role')!r}; use system, user, assistant or tool."
    )


def _text(content: Any) -> Any:
    """Return content as text if it is parts with text."""
    text = text_of(content) if isinstance(content, list) else None
    return content if text is None else text


def _call(call: Mapping[str, Any]) -> dict[str, Any]:
    if call.get("type") == "custom":
        return {"type": "custom_tool_call", "call_id": call["id"], **call["custom"]}
    function = call["function"]
    return {
        "type": "function_call",
        "call_id": call["id"],
        "name": function["name"],
        "arguments": function["arguments"],
    }


def _message(response: ModelResponse) -> Message:
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for item in response.output:
        if isinstance(item, ResponseOutputMessage):
            texts += [getattr(part, "text", "") or "" for part in item.content]
        elif isinstance(item, ResponseFunctionToolCall):
            called = {"name": item.name, "arguments": item.arguments}
            calls.append({"id": item.call_id, "type": "function", "function": called})
    return Message("assistant", "".join(texts) or None, tuple(calls))
