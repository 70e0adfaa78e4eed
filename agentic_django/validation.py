"""Validates the input and the options of runs, and JSON values, for services and views.

Services validate the input and the options of every run. Views add the limits for clients:
``check_item_count`` and ``check_client_options``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Annotated, Any

from annotated_types import Ge
from django.utils.translation import gettext as _
from pydantic import BaseModel, ConfigDict, ValidationError

from agentic_django.conf import settings
from agentic_django.exceptions import MAX_ERRORS, BadInput, InputTooLarge, suggestion
from agentic_django.serialization import path_to, to_jsonable

__all__ = [
    "MAX_DEPTH",
    "RunOptions",
    "check_client_options",
    "check_item_count",
    "check_json",
    "validated",
    "validated_input",
    "validated_run_options",
]

MAX_DEPTH = 64
"""The maximum number of nested lists and objects."""

SDK_MAX_TURNS = 10
"""The SDK's default. It is repeated here because importing the SDK would slow web processes."""


# Input


def validated_input(payload: Any) -> str | list[dict[str, Any]]:
    """Return a run's input as it is stored: a string, or a list of the SDK's input items.

    Raises BadInput for other or empty input, and NotSerializable for values that JSON cannot
    represent.
    """
    payload = to_jsonable(payload, "input")
    is_text = isinstance(payload, str) and payload.strip()
    is_items = isinstance(payload, list) and payload and all(map(_is_item, payload))
    if is_text or is_items:
        return payload  # type: ignore[no-any-return]
    raise BadInput(
        errors={
            "input": _(
                "Give a text that is not empty, or a list of at least one input item: "
                'an object with a "role" or a "type".'
            )
        }
    )


def _is_item(item: Any) -> bool:
    return isinstance(item, dict) and any(isinstance(item.get(k), str) for k in ("role", "type"))


def check_item_count(payload: Any) -> None:
    """Raise InputTooLarge for more items than ``AGENTIC_DJANGO_MAX_INPUT_ITEMS``."""
    most = settings.MAX_INPUT_ITEMS
    if isinstance(payload, list) and len(payload) > most:
        text = _("Too many items: %(count)s. The limit is %(most)s.")
        raise InputTooLarge(errors={"input": text % {"count": len(payload), "most": most}})


def check_json(value: Any, path: str = "", depth: int = 0) -> None:
    """Raise BadInput for a value that a JSON column cannot hold; the error names its path.

    JSON columns cannot hold U+0000, lone surrogates, numbers that are not finite, and values nested
    more than ``MAX_DEPTH`` levels deep.
    """
    if depth > MAX_DEPTH:
        text = _("The value is nested more than %(most)s levels deep.")
        raise BadInput(errors={path: text % {"most": MAX_DEPTH}})
    if isinstance(value, str):
        _check_text(value, path)
    elif isinstance(value, float) and not math.isfinite(value):
        raise BadInput(errors={path: _("JSON does not allow NaN or Infinity.")})
    elif isinstance(value, Mapping):
        for key, inner in value.items():
            _check_text(key, path or _("(field name)"))
            check_json(inner, path_to(path, key), depth + 1)
    elif isinstance(value, list | tuple):
        for index, inner in enumerate(value):
            check_json(inner, path_to(path, index), depth + 1)


def _check_text(text: str, path: str) -> None:
    if "\x00" in text:
        raise BadInput(errors={path: _("The character U+0000 is not allowed.")})
    if re.search(r"[\ud800-\udfff]", text):
        raise BadInput(errors={path: _("Lone surrogates are not allowed.")})


def validated[M: BaseModel](model: type[M], data: Any, *, strict: bool = True) -> M:
    """Return data as a model; raise BadInput, which names each invalid field."""
    try:
        return model.model_validate(data, strict=strict)
    except ValidationError as error:
        details = error.errors(include_url=False, include_context=False, include_input=False)
    errors = {}
    for detail in details[:MAX_ERRORS]:
        parts = (f"[{part}]" if isinstance(part, int) else f".{part}" for part in detail["loc"])
        path = "".join(parts).lstrip(".") or "(body)"
        errors[path] = detail["msg"].removeprefix("Value error, ").removesuffix(".") + "."
        if detail["type"] == "extra_forbidden":
            similar = suggestion(str(detail["loc"][-1])[:100], model.model_fields)
            errors[path] = " ".join([_("Unknown field."), similar])
    raise BadInput(errors=errors)


# Run options


class RunOptions(BaseModel):
    """The options that a run may have: the SDK's options that JSON can represent.

    ``max_turns`` is an argument of the SDK's ``Runner``, the others belong to its ``RunConfig``.
    """

    model_config = ConfigDict(extra="forbid", protected_namespaces=())
    max_turns: Annotated[int, Ge(1)] | None = None
    model: str = ""
    model_settings: dict[str, Any] = {}
    workflow_name: str = ""
    trace_id: str = ""
    group_id: str = ""
    trace_metadata: dict[str, Any] = {}
    tracing_disabled: bool = False
    trace_include_sensitive_data: bool = True


def validated_run_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a run as they are stored; raise BadInput for invalid ones."""
    options = to_jsonable(dict(config), "config")
    check_json(options, "config")
    try:
        return validated(RunOptions, options).model_dump(exclude_unset=True)
    except BadInput as error:
        raise BadInput(errors={f"config.{name}": e for name, e in error.errors.items()}) from None


def check_client_options(config: Mapping[str, Any]) -> None:
    """Raise BadInput for options that a client may not set.

    ``AGENTIC_DJANGO_CLIENT_RUN_OPTIONS`` names the allowed options. ``max_turns`` may not exceed
    the host's own value. ``validated_run_options`` checks the types.
    """
    names = settings.CLIENT_RUN_OPTIONS
    most: int | None = settings.DEFAULT_RUN_OPTIONS.get("max_turns", SDK_MAX_TURNS)
    refused = [name for name in config if name not in names]
    if refused:
        limit = _("max_turns (1 to %(most)s)") % {"most": most or _("any number")}
        known = ", ".join(limit if name == "max_turns" else name for name in names)
        text = _("Not allowed. Allowed: %(names)s.") % {"names": known or _("none")}
        raise BadInput(errors={f"config.{name}": text for name in refused})
    turns = config.get("max_turns", 1)
    if most is not None and (turns is None or (isinstance(turns, int) and turns > most)):
        text = _("Enter a number from 1 to %(most)s.") % {"most": most}
        raise BadInput(errors={"config.max_turns": text})
