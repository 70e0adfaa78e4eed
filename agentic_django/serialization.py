"""SDK values to JSON and back. What would be lost is refused."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

from pydantic import BaseModel, TypeAdapter

from agentic_django.exceptions import NotSerializable

__all__ = ["dumps", "loads", "to_jsonable"]

_SCALARS = (datetime, date, time, timedelta, Decimal, UUID)
_ANY: TypeAdapter[Any] = TypeAdapter(Any)


def dumps(value: Any) -> str:
    """Return a value as JSON text in ASCII.

    Text outside ASCII is escaped, so that U+0000 and lone surrogates, which databases refuse,
    are kept. Raises NotSerializable for what JSON cannot hold.
    """
    return json.dumps(to_jsonable(value), allow_nan=False, separators=(",", ":"))


def loads(text: str) -> Any:
    """Return the value of JSON text written by ``dumps``."""
    return json.loads(text)


def to_jsonable(value: Any, path: str = "value") -> Any:
    """Return a value as plain dicts, lists, strings and numbers.

    Pydantic models and dataclasses become objects; dates, decimals, UUIDs and enum members
    become what pydantic writes for them. Bytes, sets, keys that are not strings, infinities
    and unknown types are refused with NotSerializable, which names where they stand.
    """
    if value is None or (isinstance(value, bool | int | str) and not isinstance(value, Enum)):
        return value
    if isinstance(value, float):
        return _finite(value, path)
    if isinstance(value, BaseModel):
        return _model(value, path)
    if isinstance(value, Mapping):
        return {_key(k, path): to_jsonable(v, f"{path}.{k}") for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [to_jsonable(v, f"{path}[{i}]") for i, v in enumerate(value)]
    return _special(value, path)


def _model(value: BaseModel, path: str) -> Any:
    try:
        data = value.model_dump(mode="json")
    except ValueError as error:  # An unknown type within it, or bytes that are no text.
        kind = type(value).__name__
        raise NotSerializable(f"{path}, of type {kind}, is not JSON: {error}") from error
    return to_jsonable(data, path)


def _special(value: Any, path: str) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = dataclasses.fields(value)
        return {f.name: to_jsonable(getattr(value, f.name), f"{path}.{f.name}") for f in fields}
    if isinstance(value, Enum):
        return to_jsonable(value.value, path)
    if isinstance(value, _SCALARS):
        return _ANY.dump_python(value, mode="json")
    kind = type(value).__name__
    raise NotSerializable(
        f"{path} is of type {kind}, which JSON cannot hold without loss. "
        "Return text, numbers, lists, dicts, a dataclass or a pydantic model."
    )


def _finite(value: float, path: str) -> float:
    if math.isfinite(value):
        return value
    raise NotSerializable(f"{path} is {value}, which is not a number in JSON. Use null.")


def _key(key: Any, path: str) -> str:
    if isinstance(key, str):
        return key
    raise NotSerializable(f"{path} has the key {key!r}; keys of JSON objects are strings.")
