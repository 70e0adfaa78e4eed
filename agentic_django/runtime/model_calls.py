"""Makes one model call for a host's own loop. Within a run, the call is recorded.

Messages are in OpenAI's chat format: ``role`` (system, user, assistant, tool), ``content``,
``tool_calls`` and ``tool_call_id``.
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
    """A model's answer, with the SDK's response from which it is made."""

    message: Message
    response: ModelResponse

    @property
    def tool_calls(self) -> Sequence[dict[str, Any]]:
        """The tool calls that the model requests, in the format of OpenAI's chat API."""
        return self.message.tool_calls


async def generate(
    messages: Sequence[Any],
    *,
    tools: Iterable[Any] = (),
    using: str | Model | None = None,
    **options: Any,
) -> Answer:
    """Call a model once, and return its answer.

    ``tools`` is a ToolRegistry or a list of tools. A tool is an app tool, an SDK tool, or a dict in
    the format of OpenAI's chat API. ``options`` are fields of the SDK's ``ModelSettings``. Raises
    BadInput if an option is unknown.
    """
    known = [option.name for option in fields(agents.ModelSettings)]
    for name in options.keys() - set(known):  # The SDK would ignore them.
        raise BadInput(f"Unknown model option {name!r}. {suggestion(name, known)}")
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


def _tool(given: Any) -> Any:
    """Return a tool of the SDK. The model reads its description; it is not called here."""
    if not isinstance(given, Mapping):
        return getattr(given, "function_tool", given)
    function = given["function"]
    return agents.FunctionTool(
        name=function["name"],
        description=function.get("description", ""),
        params_json_schema=function.get("parameters", {}),
        on_invoke_tool=_never_called,
        strict_json_schema=function.get("strict", False),
    )


async def _never_called(context: Any, arguments: str) -> Any:
    raise NotImplementedError("generate() calls no tools. Execute the tool in your own loop.")


def _message(response: ModelResponse) -> Message:
    texts: list[str] = []
    calls: list[dict[str, Any]] = []
    for item in response.output:
        if isinstance(item, ResponseOutputMessage):
            texts += [getattr(part, "text", "") or "" for part in item.content]
        elif isinstance(item, ResponseFunctionToolCall):
            function = {"name": item.name, "arguments": item.arguments}
            calls.append({"id": item.call_id, "type": "function", "function": function})
    return Message("assistant", "".join(texts) or None, tuple(calls))
