"""Converts the SDK's responses and tool results to JSON and events, and back.

A value that is read back must produce the same request to the model as the original.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

from agents.items import ModelResponse, TResponseOutputItem
from agents.tool import ToolOutputFileContent, ToolOutputImage, ToolOutputText
from agents.usage import Usage, deserialize_usage
from openai.types.responses import Response, ResponseCompletedEvent, ResponseUsage
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails
from pydantic import BaseModel, TypeAdapter, ValidationError

from agentic_django.engine import events
from agentic_django.engine.events import Event, EventType
from agentic_django.models import Visibility
from agentic_django.openai_agents import sdk_internals
from agentic_django.serialization import to_jsonable

__all__ = [
    "call_fingerprint",
    "dump_response",
    "fingerprint",
    "load_response",
    "parsed_arguments",
    "question_fingerprint",
    "replay_event",
    "response_events",
    "storable_tool_value",
    "streamed_response",
    "usable_usage",
    "usage_counts",
]

_ITEM: TypeAdapter[Any] = TypeAdapter(TResponseOutputItem)
_USAGE: TypeAdapter[Usage] = TypeAdapter(Usage)


def dump_response(response: ModelResponse) -> dict[str, Any]:
    """Return a model's response as JSON.

    Fields that were not set are left out, because the next request contains these items, and null
    differs from a missing field.
    """
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
    """Return the response that ``dump_response`` returned as JSON."""
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
    except ValidationError:
        # The client does not know this kind of item. It builds such an item in the same way.
        return Response.construct(output=[data]).output[0]


def streamed_response(whole: Response, streamed: Sequence[Any]) -> ModelResponse:
    """Return the response that a stream's last event contains.

    Some providers leave the output of the last event empty. In that case the response contains the
    items that were streamed before.
    """
    return ModelResponse(
        output=list(whole.output) or list(streamed),
        usage=usable_usage(whole.usage),
        response_id=whole.id,
        request_id=getattr(whole, "_request_id", None),
    )


def usable_usage(usage: Any) -> Usage:
    """Return the usage of one answer with counts that can be added up.

    ``usage`` is the SDK's or a provider's, and may be None. Providers leave out counts, or send
    null or negative numbers. These counts become 0.
    """
    asked = _count(getattr(usage, "input_tokens", 0))
    answered = _count(getattr(usage, "output_tokens", 0))
    input_details = getattr(usage, "input_tokens_details", None)
    output_details = getattr(usage, "output_tokens_details", None)
    reasoning = _count(getattr(output_details, "reasoning_tokens", 0))
    entries = getattr(usage, "request_usage_entries", None)
    return Usage(
        requests=_count(getattr(usage, "requests", 1)),
        input_tokens=asked,
        output_tokens=answered,
        total_tokens=_count(getattr(usage, "total_tokens", 0)) or asked + answered,
        input_tokens_details=InputTokensDetails.model_validate(
            {
                "cached_tokens": _count(getattr(input_details, "cached_tokens", 0)),
                "cache_write_tokens": _count(getattr(input_details, "cache_write_tokens", 0)),
            }
        ),
        output_tokens_details=OutputTokensDetails(reasoning_tokens=reasoning),
        request_usage_entries=list(entries) if isinstance(entries, list) else [],
    )


def _count(value: Any) -> int:
    is_number = isinstance(value, int | float) and isfinite(value)
    return max(int(value), 0) if is_number else 0


def replay_event(response: ModelResponse) -> ResponseCompletedEvent:
    """Return the one event that streams a recorded response."""
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
    """Return the counts of a model call that are added to the run's usage."""
    return {
        "requests": usage.requests,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "total_tokens": usage.total_tokens,
    }


def fingerprint(instructions: str | None, model_input: Any, tools: Iterable[Any]) -> str:
    """Return a hash of a model's input, which shows whether new code has changed the input."""
    names = sorted(getattr(tool, "name", type(tool).__name__) for tool in tools)
    text = json.dumps([instructions, model_input, names], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def question_fingerprint(arguments: Mapping[str, Any], model: Any) -> str:
    """Return a hash of all that an answer depends on, for arguments of ``Model.get_response``."""
    schema, options = arguments["output_schema"], vars(arguments["model_settings"])
    has_schema = schema is not None and not schema.is_plain_text()
    question = fingerprint(arguments["system_instructions"], arguments["input"], arguments["tools"])
    context = [
        question,
        str(getattr(model, "model", type(model).__name__)),
        {name: value for name, value in options.items() if value is not None and name != "retry"},
        schema.json_schema() if has_schema else None,
    ]
    text = json.dumps(context, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def call_fingerprint(tool: str, arguments: Any) -> str:
    """Return a hash of a tool's name and a call's arguments. Equal JSON has the same hash."""
    given = parsed_arguments(arguments) if isinstance(arguments, str) else arguments
    text = json.dumps([tool, given], sort_keys=True, default=repr)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def storable_tool_value(tool: Any, value: Any) -> Any:
    """Return a tool's result as JSON from which the SDK makes the same output item.

    The SDK keeps text, images and files, dumps the result of a typed tool, and calls ``str()`` on
    everything else (``agents.items.ItemHelpers.tool_call_output_item``).
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
    """Return whether a value is unchanged after it is written as JSON and read back."""
    if isinstance(value, dict):
        return all(type(k) is str and _is_plain(v) for k, v in value.items())
    if isinstance(value, list):
        return all(map(_is_plain, value))
    return value is None or type(value) in (str, int, bool)


def response_events(
    response: ModelResponse, agent: str, *, nested: bool, handoffs: Any
) -> list[Event]:
    """Return the events of a model's response: messages, reasoning and tool calls."""
    transfers = {handoff.tool_name for handoff in handoffs}
    shown = Visibility.DEBUG if nested else None
    hidden = Visibility.INTERNAL if nested else None
    found: list[Event] = []
    for item in map(_dump_item, response.output):
        match item:
            case {"type": "message", "content": content}:
                text = "".join(part.get("text") or part.get("refusal") or "" for part in content)
                found.append(events.new_event(EventType.MESSAGE, shown, text=text, agent=agent))
            case {"type": "reasoning"}:
                text = "\n\n".join(part["text"] for part in item.get("summary") or [])
                event = events.new_event(EventType.REASONING, hidden, summary=text, agent=agent)
                found.append(event)
            case {"type": "function_call", "name": name} if name not in transfers:
                found.append(_tool_called(item, name, item["arguments"], agent))
            case {"type": "image_generation_call", "id": str(call_id)}:
                found += _image_events(call_id, agent, shown)
            case {"type": "custom_tool_call", "name": name}:
                found.append(_tool_called(item, name, item["input"], agent))
    return found


def _image_events(call_id: str, agent: str, visibility: str | None) -> list[Event]:
    """Return the events of an image that the model generated. The journal contains the image."""
    call = {"call_id": call_id, "tool": "image_generation"}
    output = {**call, "output": {"type": "generated_image"}, "duration_seconds": None}
    return [
        events.new_event(EventType.TOOL_CALLED, visibility, **call, arguments={}, agent=agent),
        events.new_event(EventType.TOOL_OUTPUT, visibility, **output),
    ]


def _tool_called(item: dict[str, Any], name: str, arguments: str, agent: str) -> Event:
    return events.new_event(
        EventType.TOOL_CALLED,
        call_id=item["call_id"],
        tool=name,
        arguments=parsed_arguments(arguments),
        agent=agent,
    )


def parsed_arguments(arguments: str) -> Any:
    """Return a call's arguments as a JSON value, or unchanged if they are not JSON."""
    try:
        return to_jsonable(json.loads(arguments))
    except (ValueError, TypeError):
        return arguments
