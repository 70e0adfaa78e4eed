"""Record the result of a model call, tool call, step or child once; replay it.

A result is written in one transaction with the events that tell of it, fenced by the attempt
that made it: what is here was paid for and is not done again, what is not here may be.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from django.db import Error, connections
from django.db.models.functions import Now

from agentic_django.concurrency import event_loop
from agentic_django.engine import drafts as unfinished
from agentic_django.engine import fenced_writes
from agentic_django.engine.events import Event
from agentic_django.exceptions import AgentChanged, RunSuspended, StaleAttempt
from agentic_django.models import AgentRun, StepCheckpoint, ToolApproval, database
from agentic_django.serialization import printable

__all__ = [
    "CallResult",
    "Entry",
    "Journal",
    "load_journal",
    "record",
    "record_intent",
    "write_entries",
]

_LONGEST_KEY = 200
_LONGEST_ACTION = 80


@dataclass(slots=True)
class CallResult:
    """What is to be recorded of a call."""

    key: str
    kind: str
    name: str
    value: Any
    seconds: float
    usage: dict[str, Any] = field(default_factory=dict)
    fingerprint: str = ""
    error: str = ""
    has_draft: bool = False
    """Whether a draft of it was written, which goes with the recording."""


class Journal:
    """The recorded results of a run's generation, as one attempt reads and adds to them."""

    def __init__(
        self,
        run: AgentRun,
        recorded: Sequence[StepCheckpoint] = (),
        asked: Sequence[ToolApproval] = (),
    ) -> None:
        self.run = run
        self.reused = 0
        self.asking: dict[str, ToolApproval] = {}
        """What this attempt asks a person, by key; not stored yet."""
        self.held: dict[int, tuple[Any, str]] = {}
        """Calls of nested agents that wait for a person, by identity, and their keys."""
        self._asked = {row.key: row for row in asked}
        self._seen: set[str] = set()
        self._rows = {row.key: row for row in recorded if row.generation == run.generation}
        self._earlier = [row for row in recorded if row.generation != run.generation]
        self._deferred: list[Event] = []
        self._end: BaseException | None = None

    def find(self, key: str) -> StepCheckpoint | None:
        """Return what is recorded under a key, or None."""
        row = self._rows.get(short_key(key))
        self.reused += row is not None
        return row

    def decided(self, key: str) -> ToolApproval | None:
        """Return what a person decided about what is asked under a key, or None."""
        row = self._asked.get(short_key(key))
        if row is None or row.is_open:
            return None
        self._seen.add(row.key)
        return row

    def ask(self, key: str, **columns: Any) -> RunSuspended:
        """Note that a person is to be asked, and return what ends the attempt for that."""
        key = short_key(key)
        run = self.run
        for name in ("call_id", "tool", "agent", "question"):  # As a text column can hold it.
            columns[name] = printable(columns.get(name, ""))
        columns["action"] = printable(columns.get("action", ""))[:_LONGEST_ACTION]
        asked = ToolApproval(run=run, generation=run.generation, key=key, **columns)
        self.asking.setdefault(key, self._asked.get(key, asked))
        return self.give_up(RunSuspended())

    def check_used(self) -> None:
        """Raise AgentChanged if a call that was decided about has not been met again."""
        for key, row in self._asked.items():
            is_met = key in self._seen or key in self._rows
            if row.kind == ToolApproval.Kind.TOOL and not row.is_open and not is_met:
                raise AgentChanged(
                    f"The call of {row.tool!r} by the agent {row.agent!r} was {row.decision}, and "
                    "is not made any more: keep agents and tools under their names while runs "
                    "wait, or start the run again."
                )

    def defer(self, event: Event) -> None:
        """Keep an event for the next write, which it will be part of."""
        self._deferred.append(event)

    async def record(
        self, result: CallResult, drafts: Sequence[Event], intent: StepCheckpoint | None = None
    ) -> StepCheckpoint:
        """Write a result with its events; raises StaleAttempt if the attempt lost the run."""
        told, self._deferred = [*self._deferred, *drafts], []
        entry = Entry.of(self.run, result, told, intent)
        joined = self.run.joined_transaction
        return await self._noted(event_loop.write_batched(write_entries, entry, joined=joined))

    async def begin(self, key: str, kind: str, name: str) -> StepCheckpoint:
        """Write that a call which must not be made twice is about to be made."""
        return await self._keep(record_intent, self.run, key, kind, name)

    async def begin_again(self, intent: StepCheckpoint) -> StepCheckpoint:
        """Write that a call is made once more, because a person wants that."""
        return await self._keep(record_repeat, self.run, intent)

    async def keep_state(self, state: Any) -> None:
        """Write what a runtime wants to find again; it replaces what was kept before."""
        kept = self._rows.get(STATE_KEY)
        is_new = kept is None or kept.result != state
        await self._keep(save_state, self.run, state, is_new)

    def under(self, prefix: str) -> list[StepCheckpoint]:
        """Return what is recorded under keys with this beginning, in the order of recording."""
        return [row for key, row in self._rows.items() if key.startswith(prefix)]

    async def _keep(self, write: Callable[..., StepCheckpoint], *args: Any) -> StepCheckpoint:
        # A synchronous tool that still works must not keep the result of another from being
        # recorded; but what its caller's transaction is to cover must be written in that.
        cross = event_loop.run_sync if self.run.joined_transaction else event_loop.run_aside
        return await self._noted(cross(write, *args))

    async def _noted(self, written: Awaitable[StepCheckpoint]) -> StepCheckpoint:
        try:
            row = await written
        except (StaleAttempt, Error) as error:
            raise self.give_up(error) from None
        self._rows[row.key] = row
        return row

    def give_up[E: BaseException](self, error: E) -> E:
        """Remember what must end the attempt, whatever is made of it on the way up."""
        self._end = self._end or error
        return error

    def check(self) -> None:
        """Raise what must end the attempt, if anything does."""
        if self._end is not None:
            raise self._end

    def take_deferred(self) -> list[Event]:
        """Return the events that no write took along."""
        told, self._deferred = self._deferred, []
        return told

    def usage(self) -> dict[str, Any]:
        """Return the sum of what the recorded model calls used, in earlier generations too."""
        return total_usage([*self._earlier, *self._rows.values()])


def total_usage(rows: Iterable[StepCheckpoint]) -> dict[str, Any]:
    """Return the sum of what recorded model calls used; its cost only if all have a price."""
    total: Counter[str] = Counter()
    used = [row.usage for row in rows if row.usage]
    for usage in used:
        total.update(usage)
    if not all("cost_usd" in usage for usage in used):
        total.pop("cost_usd", None)
    return dict(total)


def short_key(key: str) -> str:
    """Return a key that fits its column; long ones end in a hash."""
    if len(key) <= _LONGEST_KEY:
        return key
    return f"{key[:130]}#{hashlib.sha256(key.encode()).hexdigest()}"


def load_journal(run: AgentRun) -> Journal:
    """Return a run's journal; a run's first attempt has none, and costs no query."""
    if run.attempt == 1:
        return Journal(run, [])
    rows = StepCheckpoint.objects.using(database()).filter(run=run)
    asked = ToolApproval.objects.using(database()).filter(run=run, generation=run.generation)
    return Journal(run, list(rows.order_by("id")), list(asked))


def record(
    run: AgentRun,
    result: CallResult,
    drafts: Sequence[Event] = (),
    intent: StepCheckpoint | None = None,
) -> StepCheckpoint:
    """Write a result, in the place of its intent if it had one, with the events that tell of it.

    ``intent`` may also be a result, which is replaced. Raises StaleAttempt if the attempt no longer
    holds the run.
    """
    return write_entries([Entry.of(run, result, drafts, intent)])[0]


@dataclass(slots=True)
class Entry:
    """A result as it is written: its row, and what goes with it."""

    row: StepCheckpoint
    intent: StepCheckpoint | None
    drafts: Sequence[Event]
    has_draft: bool

    @classmethod
    def of(
        cls,
        run: AgentRun,
        result: CallResult,
        drafts: Sequence[Event],
        intent: StepCheckpoint | None,
    ) -> Entry:
        """Return what is written of a result of a run; it replaces what an intent is about."""
        row = _row(run, result)
        has_draft = result.has_draft or (run.attempt > 1 and row.kind == row.Kind.MODEL)
        return cls(row, intent, drafts, has_draft)

    @property
    def progress(self) -> dict[str, Any]:
        """What it changes of its run."""
        return _progress(self.intent is None or self.intent.is_intent)


def write_entries(entries: Sequence[Entry], *, waits: bool = True) -> list[StepCheckpoint]:
    """Write results, with the events that tell of them, in one transaction; all or none.

    Raises StaleAttempt if an attempt no longer holds its run; see ``runs.change``.
    """
    changes = _changes(entries)
    with fenced_writes.fenced(*(each.run for each in changes), waits=waits):
        fenced_writes.write_changes(changes, waits=waits)
        _save(entries)
        for entry in entries:
            if entry.has_draft:
                unfinished.delete_draft(entry.row.run, entry.row.key)
    return [entry.row for entry in entries]


def _changes(entries: Sequence[Entry]) -> list[fenced_writes.RunChange]:
    """Return one change for each attempt; calls made side by side may have ended together."""
    changes: dict[Any, fenced_writes.RunChange] = {}
    for entry in entries:
        attempt = (entry.row.run_id, entry.row.attempt)
        change = changes.setdefault(attempt, fenced_writes.RunChange(entry.row.run))
        change.drafts = [*change.drafts, *entry.drafts]
        change.columns |= entry.progress
    return list(changes.values())


def _save(entries: Sequence[Entry]) -> None:
    """Insert new rows, and write those of intents over them; once more if that was rolled back."""
    for entry in entries:
        entry.row.pk, entry.row._state.adding = entry.intent.pk if entry.intent else None, True
    new = [entry.row for entry in entries if entry.intent is None]
    can_tell_keys = connections[database()].features.can_return_rows_from_bulk_insert
    if can_tell_keys:
        StepCheckpoint.objects.using(database()).bulk_create(new)
    for entry in entries:
        if entry.intent is not None:
            entry.row.save(using=database(), force_update=True)
        elif not can_tell_keys:
            entry.row.save(using=database(), force_insert=True)


def record_intent(run: AgentRun, key: str, kind: str, name: str) -> StepCheckpoint:
    """Write that a call is about to be made which must not be made twice."""
    row = StepCheckpoint(
        run=run,
        generation=run.generation,
        key=short_key(key),
        kind=kind,
        name=name,
        attempt=run.attempt,
    )
    with fenced_writes.fenced(run):
        fenced_writes.update_held(run)
        row.save(using=database(), force_insert=True)
    return row


def record_repeat(run: AgentRun, intent: StepCheckpoint) -> StepCheckpoint:
    """Write that this attempt makes a call again whose intent an earlier one had recorded."""
    with fenced_writes.fenced(run):
        fenced_writes.update_held(run)
        intent.attempt = run.attempt
        intent.save(using=database(), update_fields=["attempt"])
    return intent


STATE_KEY = "state"


def save_state(run: AgentRun, state: Any, is_new: bool) -> StepCheckpoint:
    """Write a runtime's state over the one that was kept before, if there is one."""
    result = CallResult(STATE_KEY, StepCheckpoint.Kind.STATE, "state", state, 0.0)
    row, rows = _row(run, result), StepCheckpoint.objects.using(database())
    with fenced_writes.fenced(run):
        fenced_writes.update_held(run, **_progress(is_new))
        kept = rows.filter(run=run, generation=run.generation, key=STATE_KEY)
        if not kept.update(result=state, attempt=run.attempt, finished_at=Now()):
            row.save(using=database(), force_insert=True)
    return row


def _progress(is_new: bool) -> dict[str, Any]:
    """Return what an attempt changes that gets further; to write the same again does not count."""
    return {"failures": 0} if is_new else {}


def _row(run: AgentRun, result: CallResult) -> StepCheckpoint:
    return StepCheckpoint(
        run=run,
        generation=run.generation,
        key=short_key(result.key),
        kind=result.kind,
        name=result.name[:255],
        attempt=run.attempt,
        fingerprint=result.fingerprint,
        result=result.value,
        error=result.error,
        usage=result.usage,
        started_at=Now() - timedelta(seconds=result.seconds),
        finished_at=Now(),
        duration_seconds=result.seconds,
    )
