"""Defines the status transitions of a run."""

from __future__ import annotations

from dataclasses import dataclass

from agentic_django.engine.events import EventType
from agentic_django.models import ACTIVE, AgentRun

__all__ = ["TRANSITIONS", "Transition"]

Status = AgentRun.Status


@dataclass(frozen=True, slots=True)
class Transition:
    """The source statuses, the target status and the event of one verb."""

    sources: tuple[str, ...]
    target: str
    event: EventType


TRANSITIONS: dict[str, Transition] = {
    "claim": Transition((Status.PENDING,), Status.RUNNING, EventType.RUN_STARTED),
    "complete": Transition((Status.RUNNING,), Status.COMPLETED, EventType.RUN_COMPLETED),
    "fail": Transition((Status.RUNNING,), Status.FAILED, EventType.RUN_FAILED),
    "time_out": Transition((Status.RUNNING,), Status.TIMED_OUT, EventType.RUN_TIMED_OUT),
    "suspend": Transition((Status.RUNNING,), Status.WAITING, EventType.RUN_WAITING),
    "requeue": Transition((Status.RUNNING,), Status.PENDING, EventType.RUN_RETRYING),
    "resume": Transition((Status.WAITING,), Status.PENDING, EventType.RUN_RETRYING),
    "retry": Transition(
        (Status.FAILED, Status.TIMED_OUT, Status.CANCELLED),
        Status.PENDING,
        EventType.RUN_RETRYING,
    ),
    "cancel": Transition(ACTIVE, Status.CANCELLED, EventType.RUN_CANCELLED),
}
"""All changes of a run's status, by verb."""
