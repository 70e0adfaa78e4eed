"""What the SDK returns, as journal text and events; and back from the journal."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from typing import Any

from agents.items import ModelResponse, TResponseOutputItem
from agents.tool import ToolOutputFileContent, ToolOutputImage, ToolOutputText
from agents.usage import Usage, deserialize_usage
from openai.types.responses import Response, ResponseCompletedEvent, ResponseUsage
from pydantic import BaseModel, TypeAdapter, ValidationError

from agentic_django.engine import events
from agentic_django.engine.events import Event, EventType
from agentic_django.models import Visibility
from agentic_django.openai_agents import sdk_internals
from agentic_django.serialization import to_jsonable

__all__ = [
    "dump_response",
    "fingerprint",
    "load_response",
    "parsed_arguments",
    "replay_event",
    "response_events",
    "storable_tool_value",
    "streamed_response",
    "usage_counts",
]

_ITEM: TypeAdapter[Any] = TypeAdapter(TResponseOutputItem)
_USAGE: TypeAdapter[Usage] = TypeAdapter(Usage)


def dump_response(response: ModelResponse) -> dict[str, Any]:
    """Return a model's response as JSON; what was not set is left out, as the next request is
    built from these items and a null is not the same as nothing."""
    return {
        "output": [_dump_item(item) for item in response.output],
        "usage": _USAGE.dump_python(response.usage, mode="json"),
        "response_id": response.response_id,
        "request_id": response.request_id,
        "raw_usage": response.raw_usage,
    }


def _dump_item(item: Any) -> Any:
    if isinstance(item, BaseModel):
        return item.model_dump(mode="json", exclude_unset=True, by_alias=True)
    return to_jsonable(item, "output item")


def load_response(data: dict[str, Any]) -> ModelResponse:
    """Return the response that ``dump_response`` wrote."""
    return ModelResponse(
        output=[_load_item(item) for item in data["output"]],
        usage=deserialize_usage(data["usage"]),
        response_id=data["response_id"],
        request_id=data["request_id"],
        raw_usage=data["raw_usage"],
    )


def _load_item(data: Any) -> Any:
    try:
        return _ITEM.validate_python(data)
    except ValidationError:  # A kind of item that this version of the client does not know.
        return Response.construct(output=[data]).output[0]  # As the client itself makes it.


def streamed_response(event: ResponseCompletedEvent, streamed: Sequence[Any]) -> ModelResponse:
    """Return the response that a stream's last event completes.

    Some providers leave the last event's output empty; then the items streamed before count.
    """
    whole = event.response
    return ModelResponse(
        output=list(whole.output) or list(streamed),
        usage=_usage_of(whole.usage),
        response_id=whole.id,
        request_id=getattr(whole, "_request_id", None),
    )


def _usage_of(usage: ResponseUsage | None) -> Usage:
    if usage is None:
        return Usage(requests=1)
    return Usage(
        requests=1,
        input_tokens=usage.input_tokens,
        output_tokens=usage.output_tokens,
        total_tokens=usage.total_tokens,
        input_tokens_details=usage.input_tokens_details,
        output_tokens_details=usage.output_tokens_details,
    )


def replay_event(response: ModelResponse) -> ResponseCompletedEvent:
    """Return the one event by which a recorded response is streamed again."""
    usage = response.usage
    whole = Response.model_construct(
        id=response.response_id,
        created_at=0,
        model="recorded",
        object="response",
        output=response.output,
        parallel_tool_calls=True,
        tool_choice="auto",
        tools=[],
        usage=ResponseUsage.model_construct(
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            total_tokens=usage.total_tokens,
            input_tokens_details=usage.input_tokens_details,
            output_tokens_details=usage.output_tokens_details,
        ),
    )
    return ResponseCompletedEvent.model_construct(
        type="response.completed", response=whole, sequence_number=0
    )


def usage_counts(usage: Usage) -> dict[str, float]:
    """Return what is billed of a model call."""
    return {
        "requests": usage.requests,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }


def fingerprint(instructions: str | None, given: Any, tools: Iterable[Any]) -> str:
    """Return a hash of what a model was asked: it shows that a deploy changed the question."""
    names = sorted(getattr(tool, "name", type(tool).__name__) for tool in tools)
    text = json.dumps([instructions, given, names], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def storable_tool_value(tool: Any, value: Any) -> Any:
    """Return a tool's result as JSON from which the SDK makes the same output item.

    The SDK keeps text, images and files, dumps what a typed tool returns, and calls ``str()``
    on everything else (``agents.items.ItemHelpers.tool_call_output_item``).
    """
    adapter = sdk_internals.output_type_adapter(tool)
    if adapter is not None and not isinstance(value, str):
        return adapter.dump_json(value, by_alias=True).decode()
    if isinstance(value, list | tuple) and sdk_internals.is_structured_output(value):
        return [_dump_part(part) for part in value]
    dumped = _dump_part(value)
    return dumped if _is_plain(dumped) else str(value)


def _dump_part(part: Any) -> Any:
    if isinstance(part, ToolOutputText | ToolOutputImage | ToolOutputFileContent):
        return part.model_dump(mode="json", exclude_none=True)
    return part


def _is_plain(value: Any) -> bool:
    """Whether a value comes back from JSON as it was."""
    if isinstance(value, dict):
        return all(type(k) is str and _is_plain(v) for k, v in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, int, bool)


def response_events(
    response: ModelResponse, agent: str, *, nested: bool, handoffs: Any
) -> list[Event]:
    """Return the events that tell of a model's response."""
    transfers = {handoff.tool_name for handoff in handoffs}
    drafts: list[Event] = []
    for item in response.output:
        drafts += _item_drafts(_dump_item(item), agent, nested, transfers)
    return drafts


def _item_drafts(item: Any, agent: str, nested: bool, transfers: set[str]) -> list[Event]:
    match item:
        case {"type": "message", "content": content}:
            seen = Visibility.DEBUG if nested else None
            return [events.new_event(EventType.MESSAGE, seen, text=_text(content), agent=agent)]
        case {"type": "reasoning"}:
            seen = Visibility.INTERNAL if nested else None
            summary = "\n\n".join(part["text"] for part in item.get("summary") or [])
            return [events.new_event(EventType.REASONING, seen, summary=summary, agent=agent)]
        case {"type": "function_call", "name": name} if name not in transfers:
            return [_called(item, name, item["arguments"], agent)]
        case {"type": "image_generation_call", "id": str(call_id)}:
            return _generated(call_id, agent, Visibility.DEBUG if nested else None)
        case {"type": "custom_tool_call", "name": name}:
            return [_called(item, name, item["input"], agent)]
    return []


def _generated(call_id: str, agent: str, seen: str | None) -> list[Event]:
    """Return the events of a picture that the model made; the picture itself is in the journal."""
    call = {"call_id": call_id, "tool": "image_generation"}
    made = {**call, "output": {"type": "generated_image"}, "duration_seconds": None}
    return [
        events.new_event(EventType.TOOL_CALLED, seen, **call, arguments={}, agent=agent),
        events.new_event(EventType.TOOL_OUTPUT, seen, **made),
    ]


def _called(item: dict[str, Any], name: str, arguments: str, agent: str) -> Event:
    return events.new_event(
        EventType.TOOL_CALLED,
        call_id=item["call_id"],
        tool=name,
        arguments=parsed_arguments(arguments),
        agent=agent,
    )


def parsed_arguments(arguments: str) -> Any:
    """Return a call's arguments as JSON; what is none stays a text."""
    try:
        return to_jsonable(json.loads(arguments))
    except (ValueError, TypeError):
        return arguments


def _text(content: Sequence[dict[str, Any]]) -> str:
    return "".join(part.get("text") or part.get("refusal") or "" for part in content)
