"""Reads the results of a run's steps, and the state that they share, from its journal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import groupby
from typing import Any

from agentic_django.models import AgentRun, StepCheckpoint, database

__all__ = ["CHECKPOINT_KEY", "ExecutionState", "merged"]

CHECKPOINT_KEY = "_step_executor_state"
"""The default prefix of the keys of recorded steps."""


@dataclass(slots=True)
class ExecutionState:
    """The completed steps of a run, their results, and the state after the last one."""

    execution_id: str
    current_step_index: int = 0
    completed_steps: list[str] = field(default_factory=list)
    step_results: dict[str, Any] = field(default_factory=dict)
    started_at: str | None = None
    custom_state: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the state as a dict of JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ExecutionState:
        """Return the state from the result of ``to_dict``."""
        return cls(**data)

    @classmethod
    def for_run(cls, run: AgentRun, checkpoint_key: str = CHECKPOINT_KEY) -> ExecutionState:
        """Read the state of a run from its journal. Steps without checkpoint are not included."""
        rows = StepCheckpoint.objects.using(database()).filter(
            run=run, generation=run.generation, key__startswith=f"{checkpoint_key}/"
        )
        return cls._of(str(run.pk), list(rows.order_by("id")))

    @classmethod
    def _of(cls, execution_id: str, rows: Sequence[StepCheckpoint]) -> ExecutionState:
        return cls(
            execution_id,
            current_step_index=max((row.result["index"] + 1 for row in rows), default=0),
            completed_steps=[row.name for row in rows],
            step_results={row.name: row.result["result"] for row in rows},
            started_at=rows[0].started_at.isoformat() if rows else None,
            custom_state=_state_after([row.result for row in rows]),
        )


def _state_after(values: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return the state after recorded steps, given in the order of recording."""
    state: dict[str, Any] = {}
    for together, group in groupby(values, lambda value: value.get("together")):
        ordered = sorted(group, key=lambda value: value["index"])
        state = ordered[-1]["state"] if together is None else merged(ordered, state)
    return state


def merged(values: Sequence[dict[str, Any]], before: dict[str, Any]) -> dict[str, Any]:
    """Return the state after a group: the state before it, with the changes of each step."""
    if not values:
        return before
    state = dict(values[0]["state"])
    for value in values[1:]:
        for key in value["gone"]:
            state.pop(key, None)
        state |= {key: value["state"][key] for key in value["changed"]}
    return state
