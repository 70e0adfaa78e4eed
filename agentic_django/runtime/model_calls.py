"""One call of a model, for loops that a host writes by hand; recorded within a run.

Messages are those of OpenAI's chat format: ``role`` (system, user, assistant, tool),
``content``, ``tool_calls`` and ``tool_call_id``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import agents
from agents.items import ModelResponse
from agents.models.interface import Model, ModelTracing
from openai.types.responses import ResponseFunctionToolCall, ResponseOutputMessage

from agentic_django.exceptions import BadInput, suggestion
from agentic_django.openai_agents.providers import get_model
from agentic_django.runtime.messages import Message, system_instructions, to_input_items

__all__ = ["Answer", "generate"]


@dataclass(frozen=True, slots=True)
class Answer:
    """A model's answer, and the SDK's response from which it is made."""

    message: Message
    response: ModelResponse

    @property
    def tool_calls(self) -> Sequence[dict[str, Any]]:
        """The calls that the model wants: id, type and function (name, arguments as JSON)."""
        return self.message.tool_calls


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
    response = await get_model(using).get_response(
        system_instructions(messages),
        to_input_items(messages),
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
        raise BadInput(f"Unknown model option {name!r}. {suggestion(name, known)}")


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
