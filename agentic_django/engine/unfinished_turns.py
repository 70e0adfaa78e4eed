"""Rebuilds the items of a run that did not complete from its journal.

The items that an attempt has buffered are lost with it. The user's input stays in the session. Each
call gets an output, because models reject a history with a call that has no output.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from agentic_django.engine.journal_entries import short_key
from agentic_django.models import AgentRun, StepCheckpoint, database

__all__ = ["UNFINISHED", "call_output", "unfinished_items"]

UNFINISHED = "This call was not completed."
"""The output of a call without a recorded result."""

_CALL_TYPES = {"function_call", "custom_tool_call"}
_LOCAL_CALL_TYPES = {
    "apply_patch_call",
    "computer_call",
    "local_shell_call",
    "mcp_approval_request",
    "shell_call",
}
"""The types of calls whose outputs are not recorded. These calls are omitted."""

_PART_FIELDS = {
    "text": ("text",),
    "image": ("image_url", "file_id", "detail"),
    "file": ("file_data", "file_url", "file_id", "filename"),
}
"""The types of tools' structured outputs, and their fields."""

_REQUIRED_FIELDS = {
    "text": ("text",),
    "image": ("image_url", "file_id"),
    "file": ("file_data", "file_url", "file_id"),
}
"""A structured output must have at least one of these fields."""

_IMAGE_DETAILS = (None, "low", "high", "auto")


def unfinished_items(run: AgentRun) -> list[Any]:
    """Return a run's items: its input, and the recorded turns of its main agent."""
    rows = StepCheckpoint.objects.using(database()).filter(run=run, generation=run.generation)
    recorded = {row.key: row for row in rows.order_by("id")}
    # Keys of nested agents have more parts.
    responses = [
        row
        for row in recorded.values()
        if row.kind == StepCheckpoint.Kind.MODEL and row.key.count("/") == 1
    ]
    payload = run.input_payload
    is_text = isinstance(payload, str)
    items = [{"role": "user", "content": payload}] if is_text else list(payload or [])
    for response, following in zip_longest(responses, responses[1:]):
        items += _turn_items(response, following, recorded)
    return items


def _turn_items(
    response: StepCheckpoint,
    following: StepCheckpoint | None,
    recorded: Mapping[str, StepCheckpoint],
) -> list[Any]:
    """Return the items of a model's response, and the outputs of its calls."""
    path, _, number = response.key.rpartition(":model:")
    items: list[Any] = []
    for item in response.result["output"]:
        if item.get("type") not in _LOCAL_CALL_TYPES:
            items.append(item)
        elif items and items[-1].get("type") == "reasoning":  # Reasoning must not lack its call.
            items.pop()
    for call in [item for item in items if item.get("type") in _CALL_TYPES]:
        key = short_key(f"{path}:tool:{number}:{call['call_id']}")
        row, result = recorded.get(key), UNFINISHED
        if row is not None and not row.is_intent and not row.error:
            result = row.result
        elif row is None and following is not None:  # A handoff is a call, but not recorded.
            result = json.dumps({"assistant": following.name})
        items.append(call_output(call, result))
    return items


def call_output(call: Mapping[str, Any], result: Any) -> dict[str, Any]:
    """Return the output item of a tool call, as the Agents SDK makes it.

    A string stays a string. A structured output of the SDK (text, image or file), or a list of
    structured outputs, becomes a list of content parts. Other values become strings.
    """
    item = {"call_id": call["call_id"], "output": result, "type": f"{call['type']}_output"}
    caller = call.get("caller")
    if caller is not None:
        item["caller"] = {name: value for name, value in caller.items() if value is not None}
    if isinstance(result, str):
        return item
    parts = [_content_part(value) for value in (result if isinstance(result, list) else [result])]
    if parts and all(parts):
        item["output"] = parts
    elif caller is not None and caller.get("type") == "program":
        item["output"] = json.dumps(result, ensure_ascii=False, separators=(",", ":"))
    else:
        item["output"] = str(result)
    return item


def _content_part(value: Any) -> dict[str, Any] | None:
    """Return a tool's structured output as a content part, or None if it has another form."""
    kind = value.get("type") if isinstance(value, dict) else None
    if not isinstance(kind, str) or kind not in _PART_FIELDS:
        return None
    given = {name: value[name] for name in _PART_FIELDS[kind] if value.get(name) is not None}
    is_valid = all(isinstance(field, str) for field in given.values())
    is_complete = any(name in given for name in _REQUIRED_FIELDS[kind])
    if not is_valid or not is_complete:
        return None
    if kind == "image" and given.get("detail") not in _IMAGE_DETAILS:
        return None
    return {"type": f"input_{kind}", **given}
