"""The table of status changes, and functions that all writers of a run's row share."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.db import transaction

from agentic_django import signals
from agentic_django.engine.events import EventType
from agentic_django.models import ACTIVE, AgentRun, database
from agentic_django.models.querysets import RunQuerySet

__all__ = [
    "TRANSITIONS",
    "Transition",
    "process_name",
    "run_rows",
    "send_signal_on_commit",
]

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


def process_name() -> str:
    """Return the name of this process among those that hold runs."""
    return f"{socket.gethostname()}:{os.getpid()}"


def run_rows() -> RunQuerySet:
    """Return the runs, in the database that holds them."""
    return AgentRun.objects.using(database())


def send_signal_on_commit(signal: Any, run: AgentRun, **kwargs: Any) -> None:
    """Send a signal about a run once the transaction is committed."""
    send_it = partial(signals.announce, signal, AgentRun, run=run, **kwargs)
    transaction.on_commit(send_it, using=database(), robust=True)
