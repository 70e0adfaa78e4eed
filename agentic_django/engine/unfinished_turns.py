"""What a run that did not complete leaves in its conversation, rebuilt from its journal.

The items that an attempt had buffered died with it; the journal knows what was paid for. The
person's words stay, and no call is left without an output: models refuse such a history.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from agents.items import ItemHelpers
from openai.types.responses import ResponseFunctionToolCall

from agentic_django.engine.journal import short_key
from agentic_django.models import AgentRun, StepCheckpoint, database

__all__ = ["unfinished_items"]

UNFINISHED = "This call was not completed."

_CALLS = {"function_call", "custom_tool_call"}
_LOCAL_CALLS = {
    "apply_patch_call",
    "computer_call",
    "local_shell_call",
    "mcp_approval_request",
    "shell_call",
}
"""Calls whose outputs are not recorded; they are left out."""


def unfinished_items(run: AgentRun) -> list[Any]:
    """Return the items of a run, from its input and what is recorded of its main agent."""
    rows = StepCheckpoint.objects.using(database()).filter(run=run, generation=run.generation)
    recorded = {row.key: row for row in rows.order_by("id")}
    said = [row for row in recorded.values() if _is_said_by_main_agent(row)]
    items = _given(run.input_payload)
    for row, following in zip_longest(said, said[1:]):
        items += _turn(row, following, recorded)
    return items


def _is_said_by_main_agent(row: StepCheckpoint) -> bool:
    return row.kind == StepCheckpoint.Kind.MODEL and row.key.count("/") == 1


def _given(payload: Any) -> list[Any]:
    if isinstance(payload, str):
        return [{"role": "user", "content": payload}]
    return list(payload or [])


def _turn(
    row: StepCheckpoint, following: StepCheckpoint | None, recorded: Mapping[str, StepCheckpoint]
) -> list[Any]:
    """Return what a response said and the outputs of its calls."""
    path = row.key.rpartition(":model:")[0]
    items = _without_local_calls(row.result["output"])
    calls = [item for item in items if item.get("type") in _CALLS]
    keys = [short_key(f"{path}:tool:{call['call_id']}") for call in calls]
    outputs = [_value(recorded.get(key), following) for key in keys]
    return [*items, *map(_output, calls, outputs)]


def _without_local_calls(items: list[Any]) -> list[Any]:
    kept: list[Any] = []
    for item in items:
        if item.get("type") not in _LOCAL_CALLS:
            kept.append(item)
        elif kept and kept[-1].get("type") == "reasoning":  # It must not stand without its call.
            kept.pop()
    return kept


def _value(row: StepCheckpoint | None, following: StepCheckpoint | None) -> Any:
    if row is not None and not row.is_intent and not row.error:
        return row.result
    if row is None and following is not None:  # A hand-off: it was followed, but is no tool.
        return json.dumps({"assistant": following.name})
    return UNFINISHED


def _output(call: dict[str, Any], value: Any) -> dict[str, Any]:
    asked = ResponseFunctionToolCall.model_construct(**call)
    return {**ItemHelpers.tool_call_output_item(asked, value), "type": f"{call['type']}_output"}
