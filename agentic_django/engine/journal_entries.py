"""Writes the entries of the journal: results, intents and states, as rows of ``StepCheckpoint``.

Each function is one transaction, guarded by the attempt, and raises StaleAttempt if the attempt
has lost its run.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.db import connections
from django.db.models.functions import Now

from agentic_django.engine import drafts, fenced_writes
from agentic_django.engine.attempt import Attempt
from agentic_django.engine.events import Event
from agentic_django.models import AgentRun, StepCheckpoint, database
from agentic_django.models.fields import column_text

__all__ = [
    "REFUSED",
    "RETRY_KEY",
    "STATE_KEY",
    "CallResult",
    "Entry",
    "note_retry",
    "record_intent",
    "record_repeat",
    "refuse_response",
    "save_entries",
    "save_state",
    "short_key",
    "write_entries",
]

STATE_KEY = "state"
"""The key of the state that a run's code saves."""

RETRY_KEY = "retry"
"""The key of the number of the attempt after which a person retried the run last."""

REFUSED = "refused"
"""The error of a response that failed the run. The next attempt asks the model anew."""

_LONGEST_KEY = 200


@dataclass(slots=True)
class CallResult:
    """The result of a call, to be recorded."""

    key: str
    kind: str
    name: str
    value: Any
    seconds: float
    usage: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    error: str = ""
    has_draft: bool = False
    """Whether a partial message was written. Recording the result deletes it."""


def short_key(key: str) -> str:
    """Return a key that fits its column; a long key ends in a hash."""
    if len(key) <= _LONGEST_KEY:
        return key
    return f"{key[:130]}#{hashlib.sha256(key.encode()).hexdigest()}"


@dataclass(slots=True)
class Entry:
    """A result to write: its row, its events, and the row that it replaces."""

    attempt: Attempt
    row: StepCheckpoint
    replaces: StepCheckpoint | None
    new_events: Sequence[Event]
    has_draft: bool

    @classmethod
    def of(
        cls,
        attempt: Attempt,
        result: CallResult,
        new_events: Sequence[Event] = (),
        replaces: StepCheckpoint | None = None,
    ) -> Entry:
        """Return the entry for a result of an attempt."""
        row = _row(attempt, result)
        has_draft = result.has_draft or (attempt.number > 1 and row.kind == row.Kind.MODEL)
        return cls(attempt, row, replaces, new_events, has_draft)

    @property
    def run_columns(self) -> dict[str, Any]:
        """Return the columns of the run that the entry changes."""
        return _progress_columns(self.replaces is None or self.replaces.is_intent)


def write_entries(entries: Sequence[Entry], *, waits: bool = True) -> list[StepCheckpoint]:
    """Write results with their events in one transaction: all or none.

    Raises StaleAttempt if an attempt has lost its run; see ``fenced_writes.write_changes``.
    """
    changes: dict[Attempt, fenced_writes.RunChange] = {}
    for entry in entries:  # Parallel calls of one attempt may end at the same time.
        change = changes.setdefault(entry.attempt, fenced_writes.RunChange(entry.attempt))
        change.new_events = [*change.new_events, *entry.new_events]
        change.columns |= entry.run_columns
    with fenced_writes.fenced(*changes, waits=waits):
        fenced_writes.write_changes(list(changes.values()), waits=waits)
        save_entries(entries)
        for entry in entries:
            if entry.has_draft:
                drafts.delete_draft(entry.row.run, entry.row.key)
    return [entry.row for entry in entries]


def save_entries(entries: Sequence[Entry]) -> None:
    """Insert new rows and overwrite replaced ones, in the transaction of ``write_entries``.

    It may be called again with the same entries after a rollback.
    """
    for entry in entries:
        entry.row.pk, entry.row._state.adding = entry.replaces.pk if entry.replaces else None, True
    new = [entry.row for entry in entries if entry.replaces is None]
    returns_keys = connections[database()].features.can_return_rows_from_bulk_insert
    if returns_keys:
        StepCheckpoint.objects.using(database()).bulk_create(new)
    for entry in entries:
        if entry.replaces is not None:
            entry.row.save(using=database(), force_update=True)
        elif not returns_keys:
            entry.row.save(using=database(), force_insert=True)


def record_intent(
    attempt: Attempt, key: str, kind: str, name: str, fingerprint: str = ""
) -> StepCheckpoint:
    """Record, before a call that must not be repeated, that it is about to be made."""
    run = attempt.run
    row = StepCheckpoint(
        run=run,
        generation=run.generation,
        key=short_key(key),
        kind=kind,
        name=name,
        attempt=attempt.number,
        fingerprint=fingerprint,
    )
    with fenced_writes.fenced(attempt):
        fenced_writes.update_run(attempt)
        row.save(using=database(), force_insert=True)
    return row


def record_repeat(attempt: Attempt, intent: StepCheckpoint) -> StepCheckpoint:
    """Record that this attempt repeats a call whose intent an earlier attempt recorded."""
    with fenced_writes.fenced(attempt):
        fenced_writes.update_run(attempt)
        intent.attempt = attempt.number
        intent.save(using=database(), update_fields=["attempt"])
    return intent


def refuse_response(attempt: Attempt, row: StepCheckpoint) -> None:
    """Write that a recorded response fails the run, so that it is not used again."""
    with fenced_writes.fenced(attempt):
        fenced_writes.update_run(attempt)
        row.error = REFUSED
        row.save(using=database(), update_fields=["error"])


def note_retry(run: AgentRun, generation: int) -> None:
    """Write that a person retries a run, in the transaction of the retry."""
    rows = StepCheckpoint.objects.using(database()).filter(run=run, generation=generation)
    if rows.filter(key=RETRY_KEY).update(result=run.attempt):
        return
    if rows.filter(kind=StepCheckpoint.Kind.MODEL).exists():
        StepCheckpoint.objects.using(database()).create(
            run=run,
            generation=generation,
            key=RETRY_KEY,
            kind=StepCheckpoint.Kind.STATE,
            name="retry",
            attempt=run.attempt,
            result=run.attempt,
            finished_at=Now(),
        )


def save_state(attempt: Attempt, state: Any, is_new: bool) -> StepCheckpoint:
    """Write a run's state over its earlier one. The first state counts as progress."""
    run = attempt.run
    result = CallResult(STATE_KEY, StepCheckpoint.Kind.STATE, "state", state, 0.0)
    row, rows = _row(attempt, result), StepCheckpoint.objects.using(database())
    with fenced_writes.fenced(attempt):
        fenced_writes.update_run(attempt, **_progress_columns(is_new))
        saved = rows.filter(run=run, generation=run.generation, key=STATE_KEY)
        if not saved.update(result=state, attempt=attempt.number, finished_at=Now()):
            row.save(using=database(), force_insert=True)
    return row


def _progress_columns(is_new: bool) -> dict[str, Any]:
    """Reset the count of failures if something new was recorded, because the run made progress."""
    return {"failures": 0} if is_new else {}


def _row(attempt: Attempt, result: CallResult) -> StepCheckpoint:
    return StepCheckpoint(
        run=attempt.run,
        generation=attempt.run.generation,
        key=short_key(result.key),
        kind=result.kind,
        name=column_text(StepCheckpoint, "name", result.name),
        attempt=attempt.number,
        fingerprint=result.fingerprint,
        result=result.value,
        error=result.error,
        usage=result.usage,
        started_at=Now() - timedelta(seconds=result.seconds),
        finished_at=Now(),
        duration_seconds=result.seconds,
    )
