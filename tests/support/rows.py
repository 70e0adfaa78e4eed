"""Rows as a test needs them, put where no run of the app would have put them."""

from __future__ import annotations

from datetime import timedelta
from typing import Any
from uuid import uuid4

from django.db.models.functions import Now

from agentic_django.engine import session_items
from agentic_django.models import (
    FINISHED,
    AgentEvent,
    AgentRun,
    AgentSession,
    StepCheckpoint,
    Visibility,
)


def make_session(owner: Any, *, days_ago: float = 0, **columns: Any) -> AgentSession:
    """Return a conversation that was last used so many days ago."""
    columns.setdefault("session_key", uuid4().hex)
    session = AgentSession.objects.create(owner=owner, **columns)
    age(session, days_ago)
    return session


def make_run(
    owner: Any, status: str = "completed", *, days_ago: float = 0, **columns: Any
) -> AgentRun:
    """Return a run in a state; one that is finished ended so many days ago."""
    columns = {"agent_key": "echo", "input_payload": "Hello", **columns}
    run = AgentRun.objects.create(owner=owner, **columns)
    moment = Now() - timedelta(days=days_ago)
    changes: dict[str, Any] = {"status": status}
    if status in FINISHED:
        changes["finished_at"] = moment
    if status == "running":
        changes |= {"attempt": 1, "lease_ends_at": Now() + timedelta(minutes=1)}
    AgentRun.objects.filter(pk=run.pk).update(**changes)
    run.refresh_from_db()
    return run


def age(session: AgentSession, days: float) -> None:
    """Let a conversation have been used last so many days ago."""
    moment = Now() - timedelta(days=days)
    AgentSession.objects.filter(pk=session.pk).update(updated_at=moment)


def make_events(run: AgentRun, count: int, **columns: Any) -> None:
    """Give a run so many events."""
    columns = {"event_type": "message", "visibility": Visibility.USER, "payload": {}, **columns}
    first = run.event_count + 1
    rows = [AgentEvent(run=run, sequence=n, **columns) for n in range(first, first + count)]
    AgentEvent.objects.bulk_create(rows)
    run.event_count += count
    AgentRun.objects.filter(pk=run.pk).update(event_count=run.event_count)


def make_items(session: AgentSession, count: int, run: AgentRun | None = None) -> None:
    """Give a conversation so many items."""
    items = [{"role": "user", "content": f"Item {n}"} for n in range(1, count + 1)]
    session_items.append_items(session, items, run)


def make_checkpoint(run: AgentRun, key: str = "main:model:1", **columns: Any) -> StepCheckpoint:
    """Give a run a recorded model call."""
    columns = {"kind": "model", "name": "echo", "attempt": 1, "finished_at": Now(), **columns}
    return StepCheckpoint.objects.create(run=run, key=key, **columns)


def write(run: AgentRun) -> None:
    """Write all columns of a run, as no host can: ``save()`` leaves an attempt's alone."""
    run.save(update_fields=[f.name for f in run._meta.concrete_fields if not f.primary_key])
