"""Converts values to JSON and back. Values that would lose information are rejected."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from django.utils.functional import Promise
from pydantic import BaseModel, TypeAdapter

from agentic_django.exceptions import NotSerializable

__all__ = [
    "dumps",
    "from_part",
    "is_storable",
    "loads",
    "path_to",
    "text_of",
    "to_jsonable",
    "to_messages",
]

_MAX_DEPTH = 500
_MAX_NAME = 100
_MAX_PATH = 400
_MAX_NUMBER = 10**4000
"""Python refuses to convert numbers of more than 4,300 digits."""

_SCALARS = (datetime, date, time, timedelta, Decimal, UUID)
_ANY: TypeAdapter[Any] = TypeAdapter(Any)


def dumps(value: Any) -> str:
    """Return a value as JSON text in ASCII.

    Other characters are escaped, because databases reject U+0000 and lone surrogates. Raises
    NotSerializable if JSON cannot represent the value.
    """
    return json.dumps(to_jsonable(value), allow_nan=False, separators=(",", ":"))


def loads(text: str) -> Any:
    """Return the value of JSON text written by ``dumps``."""
    return json.loads(text)


def is_storable(text: str) -> bool:
    """Whether every database accepts a text: it has no U+0000 and no lone surrogate."""
    return not re.search("[\x00\ud800-\udfff]", text)


def to_jsonable(value: Any, path: str = "value", depth: int = 0) -> Any:
    """Return a value as plain dicts, lists, strings and numbers.

    Pydantic models and dataclasses become objects. Dates, decimals, UUIDs and enum members are
    converted as pydantic does. Lazy translations become text in the current language. Raises
    NotSerializable, which names the path, for bytes, sets, keys that are not strings, infinities,
    numbers of more than 4,000 digits, more than 500 nested levels, and unknown types.
    """
    if depth > _MAX_DEPTH:
        raise NotSerializable(f"{path:.60}… is nested more than {_MAX_DEPTH} levels deep.")
    if value is None or (isinstance(value, bool | str) and not isinstance(value, Enum)):
        return value
    if isinstance(value, int | float) and not isinstance(value, Enum):
        return _checked_number(value, path)
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise NotSerializable(
                    f"{path} has the key {key!r:.100}; keys of JSON objects are strings."
                )
        return {key: to_jsonable(v, path_to(path, key), depth + 1) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(v, path_to(path, i), depth + 1) for i, v in enumerate(value)]
    return _special(value, path, depth)


def path_to(path: str, key: str | int) -> str:
    """Return the path of an entry in an error, such as ``context.orders[3]``.

    Long names and paths are cut, so that a body of many entries below them costs linear time.
    """
    if len(path) > _MAX_PATH:
        return path
    if isinstance(key, int):
        return f"{path}[{key}]"
    return f"{path}.{key:.{_MAX_NAME}}" if path else f"{key:.{_MAX_NAME}}"


def _checked_number(value: float, path: str) -> float:
    if isinstance(value, int):
        if not -_MAX_NUMBER < value < _MAX_NUMBER:
            text = f"{path} is a number of more than 4,000 digits. Return it as text."
            raise NotSerializable(text)
    elif not math.isfinite(value):
        raise NotSerializable(f"{path} is {value}, which is not a number in JSON. Use null.")
    return value


def _special(value: Any, path: str, depth: int) -> Any:
    """Convert models, dataclasses, enum members and other types that have a form in JSON."""
    kind = type(value).__name__
    if isinstance(value, BaseModel):
        try:
            data = value.model_dump(mode="json")
        except ValueError as error:  # An unknown type in the model, or bytes that are not text.
            raise NotSerializable(f"{path}, of type {kind}, is not JSON: {error}") from error
        return to_jsonable(data, path, depth)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
        return to_jsonable(fields, path, depth)
    if isinstance(value, Enum):
        return to_jsonable(value.value, path, depth)
    if isinstance(value, Promise):
        return str(value)
    if isinstance(value, _SCALARS):
        return _ANY.dump_python(value, mode="json")
    raise NotSerializable(
        f"{path} is of type {kind}, which JSON cannot hold without loss. "
        "Return text, numbers, lists, dicts, a dataclass or a pydantic model."
    )


def to_messages(items: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return the SDK's items as messages in the chat format, which most frameworks read.

    ``role`` is user, assistant, system or tool. Calls are in ``tool_calls`` of an assistant's
    message; their outputs are messages with the role tool. Content that consists of text only
    becomes a string. Reasoning and other items are left out.
    """
    messages: list[dict[str, Any]] = []
    for item in items:
        match item:
            case {"type": "function_call", "call_id": call_id, "name": name, "arguments": given}:
                called = {"name": name, "arguments": given}
                _tool_calls(messages).append(
                    {"id": call_id, "type": "function", "function": called}
                )
            case {"type": "custom_tool_call", "call_id": call_id, "name": name, "input": given}:
                written = {"name": name, "input": given}
                _tool_calls(messages).append({"id": call_id, "type": "custom", "custom": written})
            case {
                "type": "function_call_output" | "custom_tool_call_output",
                "call_id": call_id,
                "output": output,
            }:
                text = output if isinstance(output, str) else dumps(output)
                messages.append({"role": "tool", "tool_call_id": call_id, "content": text})
            case {"role": role, "content": content}:
                if isinstance(content, list):
                    plain = text_of(content)
                    content = [_part(part) for part in content] if plain is None else plain
                messages.append({"role": role, "content": content})
    return messages


def _tool_calls(messages: list[dict[str, Any]]) -> list[Any]:
    """Return the calls of the last message, after adding an assistant's message if needed."""
    if not messages or messages[-1]["role"] != "assistant":
        messages.append({"role": "assistant", "content": None})
    calls: list[Any] = messages[-1].setdefault("tool_calls", [])
    return calls


def text_of(parts: Iterable[Any]) -> str | None:
    """Return the text of parts, including refusals; None if there are other parts."""
    texts = [p.get("text", p.get("refusal")) if isinstance(p, dict) else None for p in parts]
    return None if None in texts else "".join(map(str, texts))


def _part(part: Any) -> Any:
    match part:
        case {"type": "input_text" | "output_text", "text": text}:
            return {"type": "text", "text": text}
        case {"type": "refusal", "refusal": text}:
            return {"type": "text", "text": text}
        case {"type": "input_image", "image_url": str(url)}:
            return {
                "type": "image_url",
                "image_url": {"url": url, **_without_none(part, ("detail",))},
            }
        case {"type": "input_file"}:
            return {"type": "file", "file": _without_none(part, _FILE)}
    return part


_FILE = ("file_id", "file_data", "filename")


def from_part(part: Any) -> Any:
    """Return a part of a message in the chat format in the SDK's format."""
    match part:
        case {"type": "text", "text": text}:
            return {"type": "input_text", "text": text}
        case {"type": "image_url", "image_url": {"url": url, **more}}:
            return {"type": "input_image", "image_url": url, "detail": more.get("detail", "auto")}
        case {"type": "file", "file": {**fields}}:
            return {"type": "input_file", **_without_none(fields, _FILE)}
    return part


def _without_none(values: Mapping[Any, Any], names: Iterable[str]) -> dict[str, Any]:
    return {name: values[name] for name in names if values.get(name) is not None}


def printable(text: str) -> str:
    """Return text that can be encoded: U+0000 and lone surrogates are replaced."""
    return text.encode("utf-8", "replace").decode().replace("\0", "�")
