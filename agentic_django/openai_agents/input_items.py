"""Checks input items against the SDK's own types, and against the kinds that clients may send.

A provider would reject a malformed item in this run and in each later run of its conversation. A
well-formed item of a forbidden kind would let a client speak to the model as the host.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Any, Literal, cast, get_args, get_origin, get_type_hints

from agents import TResponseInputItem
from django.utils.translation import gettext as _
from openai.types.responses import (
    EasyInputMessageParam,
    ResponseInputAudioParam,
    ResponseInputContentParam,
)
from openai.types.responses.response_output_message_param import Content as OutputContent
from pydantic import TypeAdapter, ValidationError

from agentic_django.conf import settings
from agentic_django.exceptions import MAX_ERRORS, BadInput, suggestion

__all__ = ["FILE_ID", "KINDS", "check_client_items", "check_items", "kind_of"]

FILE_ID = "file_id"
"""The name that ``AGENTIC_DJANGO_CLIENT_INPUT_ITEMS`` uses for files stored at the provider."""

_TOLERATED = ("annotations", "detail", "logprobs", "status")
"""Fields that the SDK's types require, but the provider fills in itself."""


def _literals(hint: Any) -> tuple[Any, ...]:
    """Return the values of a Literal or an optional Literal."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(value for part in get_args(hint) for value in _literals(part))


def _by_type(union: Any) -> dict[str, Any]:
    """Return the members of a union of TypedDicts by the value of their field ``type``."""
    members = get_args(union) or (union,)
    return {
        kind: member for member in members for kind in _literals(get_type_hints(member)["type"])
    }


ROLES: tuple[str, ...] = get_args(get_type_hints(EasyInputMessageParam)["role"])
_ITEMS = {k: form for k, form in _by_type(TResponseInputItem).items() if k != "message"}
_PICTURES_AND_FILES = _by_type(ResponseInputContentParam)
_INPUT_PARTS = _PICTURES_AND_FILES | _by_type(ResponseInputAudioParam)
_OUTPUT_PARTS = _INPUT_PARTS | _by_type(OutputContent)

_CALL_OF = {
    kind: next(call for call in (stem, f"{stem}_call") if call in _ITEMS)
    for kind in _ITEMS
    if kind.endswith("_output") and (stem := kind.removesuffix("_output"))
}
"""The kind of the call to which an output belongs."""

KINDS = (*ROLES, *_ITEMS)
"""The kinds of items: the role of a message, the type of any other item."""


def kind_of(item: Mapping[str, Any]) -> Any:
    """Return the role of a message, or the type of any other item."""
    kind = item.get("type", "message")
    return item.get("role") if kind == "message" else kind


def check_items(items: Sequence[Mapping[str, Any]]) -> None:
    """Raise BadInput, which names each malformed item and each output without a call."""
    found: list[tuple[str, str]] = []
    calls: dict[str, set[Any]] = {}
    for index, item in enumerate(items):
        kind, path = kind_of(item), f"input[{index}]"
        found += islice(_malformed(item, kind, path), MAX_ERRORS)
        if not found:  # A well-formed kind is a string, and well-formed ids can be compared.
            found += _unmatched(item, kind, path, calls)
        if len(found) >= MAX_ERRORS:
            break
    _refuse(found)


def check_client_items(items: Any) -> None:
    """Raise BadInput if a client may not send one of the items.

    ``AGENTIC_DJANGO_CLIENT_INPUT_ITEMS`` names the allowed kinds. ``check_items`` checks the
    form of the items.
    """
    if not isinstance(items, list):
        return
    found: list[tuple[str, str]] = []
    for index, item in enumerate(items):
        if isinstance(item, dict):
            found += islice(_not_for_clients(item, f"input[{index}]"), MAX_ERRORS)
        if len(found) >= MAX_ERRORS:
            break
    _refuse(found)


def _refuse(found: list[tuple[str, str]]) -> None:
    if found:
        raise BadInput(errors=dict(found))


# The form


def _malformed(item: Mapping[str, Any], kind: Any, path: str) -> Iterator[tuple[str, str]]:
    if kind in ROLES:
        yield from _errors(EasyInputMessageParam, {**item, "content": ""}, path)
        yield from _content_errors(item, kind, path)
    elif isinstance(kind, str) and kind in _ITEMS:
        # A reasoning item may be sent without its id: RunConfig.reasoning_item_id_policy.
        value = {"id": "", **item} if kind == "reasoning" else item
        yield from _errors(_ITEMS[kind], value, path)
    else:
        name = "role" if "type" not in item or item["type"] == "message" else "type"
        text = _("Unknown %(name)s. %(similar)s")
        known = ROLES if name == "role" else ("message", *_ITEMS)
        yield f"{path}.{name}", text % {"name": name, "similar": suggestion(str(kind)[:100], known)}


def _content_errors(item: Mapping[str, Any], role: str, path: str) -> Iterator[tuple[str, str]]:
    content, path = item.get("content"), f"{path}.content"
    if isinstance(content, str):
        # A model's own answer may be empty.
        if role != "assistant" and not content.strip():
            yield path, _("Give a text that is not empty.")
    elif not isinstance(content, list) or (role != "assistant" and not content):
        yield path, _("Give a text, or a list of at least one part.")
    else:
        parts = _OUTPUT_PARTS if role == "assistant" else _INPUT_PARTS
        for index, part in enumerate(content):
            yield from _part_errors(part, parts, f"{path}[{index}]")


def _part_errors(part: Any, parts: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in parts:
        yield path, _("Unknown type. %(similar)s") % {"similar": suggestion(str(kind)[:100], parts)}
        return
    found = list(_errors(parts[kind], part, path))
    yield from found
    if found:
        return
    match kind:
        case "input_text" if not part["text"].strip():
            yield f"{path}.text", _("Give a text that is not empty.")
        case "input_image" if not part.get(FILE_ID):
            if not (part.get("image_url") or "").startswith(("https://", "http://", "data:image/")):
                yield f"{path}.image_url", _("Give an http(s) URL, or a data URL of an image.")
        case "input_file" if not any(map(part.get, ("file_data", "file_url", FILE_ID))):
            yield path, _("Give the file's file_data, file_url or file_id.")


@cache
def _adapter(form: Any) -> TypeAdapter[Any]:
    return TypeAdapter(form)


def _errors(form: Any, item: Mapping[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """Yield the path and the reason of each validation error of an item, or of a part of it."""
    for detail in _details(form, item):
        missing = detail["loc"][-1] if detail["type"] == "missing" else None
        where, here = path, cast("Any", item)
        for part in detail["loc"]:  # Pydantic also names the branches of unions.
            if isinstance(here, dict) and (part in here or part == missing):
                where, here = f"{where}.{part}", here.get(part)
            elif isinstance(here, list) and isinstance(part, int):
                where, here = f"{where}[{part}]", here[part]
        yield where, detail["msg"].removesuffix(".") + "."


def _details(form: Any, item: Mapping[str, Any]) -> Iterable[Any]:
    try:
        value = _adapter(form).validate_python(item, strict=True)
    except ValidationError as error:
        found: Iterable[Any] = _details_of(error)
    else:
        found = _details_within(value, ())
    return filter(_is_error, found)


def _details_of(error: ValidationError, loc: tuple[Any, ...] = ()) -> list[Any]:
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [{**detail, "loc": (*loc, *detail["loc"])} for detail in found]


def _details_within(value: Any, loc: tuple[Any, ...]) -> Iterator[Any]:
    """Yield the errors in fields of the type Iterable, which pydantic validates on iteration."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from _details_within(inner, (*loc, name))
    elif isinstance(value, list | Iterator):
        try:
            entries = list(value)
        except ValidationError as error:
            yield from _details_of(error, loc)
        else:
            for index, inner in enumerate(entries):
                yield from _details_within(inner, (*loc, index))


def _is_error(detail: Any) -> bool:
    return detail["type"] != "missing" or detail["loc"][-1] not in _TOLERATED


# Outputs and their calls


def _unmatched(
    item: Mapping[str, Any], kind: str, path: str, calls: dict[str, set[Any]]
) -> Iterator[tuple[str, str]]:
    """Yield an error if an output has no open call. Record open calls in ``calls``."""
    call_id = item.get("call_id") or item.get("id")
    if kind not in _CALL_OF:
        ids = {item.get("call_id"), item.get("id")} - {None}
        calls.setdefault(kind, set()).update(ids)
    elif call_id is not None and call_id not in calls.get(_CALL_OF[kind], ()):
        text = _("This output has no %(call)s with the same id before it, or is its second output.")
        yield path, text % {"call": _CALL_OF[kind]}
    else:
        calls.get(_CALL_OF[kind], set()).discard(call_id)


# Clients


def _not_for_clients(item: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    """Yield why a client may not send an item. ``check_items`` reports malformed items."""
    kind, allowed = kind_of(item), settings.CLIENT_INPUT_ITEMS
    if isinstance(kind, str) and kind in KINDS and kind not in allowed:
        text = _("Clients may not send items of the kind %(kind)s. Allowed: %(allowed)s.")
        listed = ", ".join(name for name in allowed if name != FILE_ID)
        yield path, text % {"kind": kind, "allowed": listed or _("none")}
    elif kind == "user":
        yield from _unknown_fields(EasyInputMessageParam, item, path)
        content = item.get("content")
        for index, part in enumerate(content if isinstance(content, list) else ()):
            yield from _part_not_for_clients(part, f"{path}.content[{index}]")


def _part_not_for_clients(part: Any, path: str) -> Iterator[tuple[str, str]]:
    kind = part.get("type") if isinstance(part, dict) else None
    if not isinstance(kind, str) or kind not in _INPUT_PARTS:
        return
    if kind not in _PICTURES_AND_FILES:
        text = _("Clients may not send parts of the type %(kind)s. Allowed: %(allowed)s.")
        yield path, text % {"kind": kind, "allowed": ", ".join(_PICTURES_AND_FILES)}
        return
    yield from _unknown_fields(_PICTURES_AND_FILES[kind], part, path)
    if part.get(FILE_ID) is not None and FILE_ID not in settings.CLIENT_INPUT_ITEMS:
        yield f"{path}.{FILE_ID}", _("Clients may not name stored files. Send the file's content.")


def _unknown_fields(form: Any, value: dict[str, Any], path: str) -> Iterator[tuple[str, str]]:
    known = get_type_hints(form)
    for name in value:
        if name not in known:
            yield (
                f"{path}.{name:.100}",
                " ".join([_("Unknown field."), suggestion(name[:100], known)]),
            )
