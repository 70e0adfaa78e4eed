"""What a run that did not complete leaves in its conversation, rebuilt from its journal.

The items that an attempt had buffered died with it; the journal knows what was paid for. The
person's words stay, and no call is left without an output: models refuse such a history.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from agentic_django.models import AgentRun, StepCheckpoint, database

__all__ = ["items_of"]

UNFINISHED = "This call was not completed."


def items_of(run: AgentRun) -> list[Any]:
    """Return the items of a run, from its input and what is recorded of its main agent."""
    rows = StepCheckpoint.objects.using(database()).filter(run=run, generation=run.generation)
    top = [row for row in rows.order_by("id") if row.key.count("/") == 1]
    outputs = {_call_id(row): row.result for row in top if row.kind != StepCheckpoint.Kind.MODEL}
    return [*_given(run.input_payload), *_answered(_said(top), outputs)]


def _given(payload: Any) -> list[Any]:
    if isinstance(payload, str):
        return [{"role": "user", "content": payload}]
    return list(payload or [])


def _said(rows: Iterable[StepCheckpoint]) -> list[Any]:
    responses = [row.result for row in rows if row.kind == StepCheckpoint.Kind.MODEL]
    return [item for response in responses for item in response["output"]]


def _call_id(row: StepCheckpoint) -> str:
    return row.key.rpartition(":tool:")[2]


def _answered(items: Iterable[Any], outputs: dict[str, Any]) -> list[Any]:
    closed: list[Any] = []
    for item in items:
        closed.append(item)
        if item.get("type") in ("function_call", "custom_tool_call"):
            closed.append(_output(item, outputs.get(item["call_id"], UNFINISHED)))
    return closed


def _output(call: dict[str, Any], value: Any) -> dict[str, Any]:
    structured = isinstance(value, list) and all(isinstance(p, dict) and "type" in p for p in value)
    return {
        "type": f"{call['type']}_output",
        "call_id": call["call_id"],
        "output": value if structured or isinstance(value, str) else str(value),
    }
