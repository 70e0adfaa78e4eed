"""Determines from earlier attempts of a run whether its steps can resume, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from agentic_django.engine.events import EventType
from agentic_django.exceptions import PipelineChanged
from agentic_django.models import AgentRun, StepCheckpoint
from agentic_django.models.run_display import since_last_restart
from agentic_django.steps.definitions import Step

__all__ = ["check_resumable", "shown_progress"]


def check_resumable(
    groups: Sequence[Sequence[Step]], recorded: Mapping[str, StepCheckpoint], version: str
) -> None:
    """Raise PipelineChanged unless these groups begin with the recorded steps, by name.

    Steps that are not recorded may be added, renamed and reordered after the recorded ones.
    """
    others = [row.fingerprint for row in recorded.values() if row.fingerprint != version]
    if others:
        raise PipelineChanged(
            f"This run was started with version {others[0]!r} of the steps, and they are version "
            f"{version!r} now. Start over."
        )
    position = {step.name: n for n, group in enumerate(groups) for step in group}
    missing = [name for name in recorded if name not in position]
    if missing:
        raise PipelineChanged(
            f"Step {missing[0]!r} is done and is not among the steps any more. Keep its name, "
            "or start over."
        )
    order = [position[name] for name in recorded]
    before = [step for group in groups[: max(order, default=0)] for step in group]
    inserted = [step.name for step in before if step.checkpoint and step.name not in recorded]
    if inserted or order != sorted(order):
        raise PipelineChanged(
            f"Steps {', '.join(recorded)} are done, in this order. Now their order is another "
            "one, or other steps come before them. Put new steps after those that are done, or "
            "start over."
        )


def shown_progress(run: AgentRun, names: Sequence[str]) -> int:
    """Return the percentage that an earlier attempt showed for the steps with these names."""
    kinds = (EventType.PROGRESS_UPDATE, EventType.RUN_RETRYING)
    rows = run.events.filter(event_type__in=kinds).order_by("sequence")
    payloads = [p for _, p in since_last_restart(list(rows.values_list("event_type", "payload")))]
    shown = [p.get("progress_percent") for p in payloads if p.get("step_name") in names]
    # A host may also write these events, with any payload.
    return max((n for n in shown if isinstance(n, int)), default=0)
