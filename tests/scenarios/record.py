"""All that is kept of a run, in a form that two runs of the same agent can be compared in."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from agentic_django.engine.events import EventType
from agentic_django.models import AgentRun
from agentic_django.serialization import dumps
from tests.scenarios import effects

__all__ = ["Record", "record_of"]

_UNEQUAL = {
    EventType.RUN_STARTED,
    EventType.RUN_RETRYING,
    EventType.STEP_STARTED,
    EventType.STEP_SKIPPED,
}
"""Events of which an interrupted run has more."""

_CHANGING = ("duration_seconds", "delay_seconds", "approval_id")


@dataclass(frozen=True)
class Record:
    """What came of a run; what is random or a time is left out, and parallel work is sorted."""

    status: str
    output: str
    usage: dict[str, int]
    error: str
    items: list[str]
    history: list[str]
    events: Counter[str]
    ends: list[str]
    journal: Counter[str]
    approvals: Counter[str]
    executed: set[str]
    problems: list[str]

    def differences(self, other: Record) -> list[str]:
        """Return how this one differs, a sentence for each field."""
        names = [f.name for f in fields(self) if f.name != "problems"]
        pairs = [(name, getattr(self, name), getattr(other, name)) for name in names]
        return [f"{name} is {mine}, not {theirs}" for name, mine, theirs in pairs if mine != theirs]


def record_of(run: AgentRun, done: Sequence[effects.Effect] | None = None) -> Record:
    """Return what the database and the file of effects, if it is not read yet, hold of a run."""
    run.refresh_from_db()
    rows = list(run.events.order_by("sequence"))
    told = [row for row in rows if row.event_type not in _UNEQUAL]
    steps = list(run.checkpoints.order_by("id"))
    done = effects.read(str(run.pk)) if done is None else done
    recorded = {(str(run.pk), step.key): step.attempt for step in steps}
    others = run.session.items.exclude(run=run) if run.session else []
    return Record(
        status=run.status,
        output=dumps(run.final_output),
        usage=run.usage,
        error=run.error_code,
        items=[dumps(item.payload) for item in run.items.order_by("sequence")],
        history=[dumps(item.payload) for item in others],
        events=Counter(f"{row.event_type} {_lasting(row.payload)}" for row in told),
        ends=[row.event_type for row in told if row.event_type.startswith("run.")],
        journal=Counter(
            dumps([s.key, s.kind, s.name, s.generation, s.result, s.error, s.usage]) for s in steps
        ),
        approvals=Counter(
            dumps(
                [
                    a.key,
                    a.tool,
                    a.question,
                    a.arguments,
                    a.decision,
                    a.effective_arguments,
                    a.reason,
                ]
            )
            for a in run.approvals.all()
        ),
        executed={effect.key for effect in done},
        problems=_gaps(run, rows) + effects.repeated(done, recorded),
    )


def _lasting(payload: dict[str, Any]) -> str:
    return dumps({name: value for name, value in payload.items() if name not in _CHANGING})


def _gaps(run: AgentRun, rows: list[Any]) -> list[str]:
    numbers = [row.sequence for row in rows]
    expected = list(range(1, run.event_count + 1))
    return [] if numbers == expected else [f"events are numbered {numbers}, not {expected}"]
