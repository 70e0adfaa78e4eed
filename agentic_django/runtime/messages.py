"""Converts messages in OpenAI's chat format to the SDK's input items."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from agentic_django.exceptions import BadInput
from agentic_django.serialization import dumps, from_part, text_of, to_jsonable

__all__ = ["Message", "run_input_items", "system_instructions", "to_input_items"]


@dataclass(frozen=True, slots=True)
class Message:
    """A message of a model: text, and the tool calls that it requests."""

    role: str
    content: str | None
    tool_calls: Sequence[dict[str, Any]] = field(default_factory=tuple)

    def to_dict(self) -> dict[str, Any]:
        """Return the message in the chat format. Append it to the messages of the next call."""
        plain: dict[str, Any] = {"role": self.role, "content": self.content}
        return {**plain, "tool_calls": list(self.tool_calls)} if self.tool_calls else plain


def to_input_items(messages: Sequence[Any], *, system: bool = False) -> list[Any]:
    """Return the SDK's input items for messages in the chat format.

    System messages are left out unless ``system`` is true. Raises BadInput if ``messages`` is not a
    list of valid messages.
    """
    if isinstance(messages, str | Mapping):
        raise BadInput(f"Give a list of messages, not {type(messages).__name__}.")
    items: list[Any] = []
    for given in messages:
        message = given.to_dict() if isinstance(given, Message) else given
        message = to_jsonable(message, "message")
        if not isinstance(message, Mapping):
            raise BadInput(f"A message is a dict with a role, not {type(message).__name__}.")
        try:
            items += _items(message, system=system)
        except (KeyError, TypeError, AttributeError) as error:
            role = message.get("role")
            raise BadInput(f"A message of the role {role!r} cannot be read: {error!r}.") from error
    custom = {item["call_id"] for item in items if item.get("type") == "custom_tool_call"}
    for item in items:
        if item.get("type") == "function_call_output" and item["call_id"] in custom:
            item["type"] = "custom_tool_call_output"
    return items


def run_input_items(messages: Sequence[Any]) -> list[Any]:
    """Return the SDK's input items for a run's input. Items that are not messages are kept."""
    found: list[Any] = []
    for message in messages:
        try:
            found += to_input_items([message], system=True)
        except BadInput:
            found.append(message)
    return found


def system_instructions(messages: Sequence[Any]) -> str | None:
    """Return the text of the system messages in a list of chat messages, or None."""
    plain = [m for m in messages if not isinstance(m, Message)]
    texts = [str(_text(m["content"])) for m in plain if m.get("role") in _SYSTEM]
    return "\n\n".join(texts) or None


_SYSTEM = ("system", "developer")


def _items(message: Mapping[str, Any], *, system: bool) -> list[Any]:
    if "type" in message:  # It is an item of the SDK.
        return [dict(message)]
    match message.get("role"):
        case "system" | "developer" as role:
            return [{"role": role, "content": _text(message["content"])}] if system else []
        case "user":
            content = message["content"]
            parts = [from_part(p) for p in content] if isinstance(content, list) else content
            return [{"role": "user", "content": parts}]
        case "assistant":
            content = _text(message.get("content"))
            texts = [{"role": "assistant", "content": content}] if content else []
            return [*texts, *(_call(call) for call in message.get("tool_calls") or ())]
        case "tool":
            call_id, output = message["tool_call_id"], message["content"]
            text = output if isinstance(output, str) else dumps(output)
            return [{"type": "function_call_output", "call_id": call_id, "output": text}]
    raise BadInput(
        f"A message has the role {message.get('role')!r}; use system, user, assistant or tool."
    )


def _text(content: Any) -> Any:
    """Return content as a string if it is a list of text parts."""
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
