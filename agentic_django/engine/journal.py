"""Records the result of each model call, tool call, step and child run, and looks it up.

A result is written once, in one transaction with its events, guarded by the attempt. A recorded
call is never made again. The next attempt may repeat a call that was not recorded.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any, Self

from django.db import Error

from agentic_django.concurrency import event_loop
from agentic_django.engine import journal_entries
from agentic_django.engine.attempt import Attempt
from agentic_django.engine.events import Event
from agentic_django.engine.journal_entries import (
    RETRY_KEY,
    STATE_KEY,
    CallResult,
    Entry,
    short_key,
)
from agentic_django.engine.usage import total_usage
from agentic_django.exceptions import AgentChanged, RunSuspended, StaleAttempt
from agentic_django.models import StepCheckpoint, ToolApproval, database
from agentic_django.models.fields import column_text

__all__ = ["Journal", "load_journal", "total_usage"]


class Journal:
    """The recorded results of a run's generation. One attempt reads them and adds to them.

    A subclass may override ``before_call``, ``after_record`` and ``load`` to observe an attempt
    or to inject faults; ``journal_class`` chooses the class.
    """

    def __init__(
        self,
        attempt: Attempt,
        recorded: Sequence[StepCheckpoint] = (),
        approvals: Sequence[ToolApproval] = (),
    ) -> None:
        self.attempt = attempt
        self.run = attempt.run
        self.requests: dict[str, ToolApproval] = {}
        """The approvals and questions that this attempt stores when it suspends its run, by key."""
        self.nested_keys: dict[int, tuple[Any, str]] = {}
        """The keys of nested agents' calls that wait for a person, by the identity of the call."""
        self._approvals = {row.key: row for row in approvals}
        self._used_decisions: set[str] = set()
        self._rows = {row.key: row for row in recorded if row.generation == self.run.generation}
        self._earlier = [row for row in recorded if row.generation != self.run.generation]
        self._deferred: list[Event] = []
        self._end: BaseException | None = None
        self._refusals: list[tuple[BaseException, str]] = []

    @classmethod
    def load(cls, attempt: Attempt) -> Self:
        """Return the journal of an attempt. The first attempt has no rows, so it makes no query."""
        return cls(attempt) if attempt.number == 1 else cls.read(attempt)

    @classmethod
    def read(cls, attempt: Attempt) -> Self:
        """Return the journal of an attempt, with all rows that are stored at this moment."""
        run = attempt.run
        rows = StepCheckpoint.objects.using(database()).filter(run=run)
        approvals = ToolApproval.objects.using(database())
        return cls(
            attempt,
            list(rows.order_by("id")),
            list(approvals.filter(run=run, generation=run.generation)),
        )

    def before_call(self, key: str) -> None:
        """A hook, called before a call for which nothing is recorded under its key."""

    def after_record(self, row: StepCheckpoint) -> None:
        """A hook, called after a result or an intent was written."""

    # Find

    def find(self, key: str) -> StepCheckpoint | None:
        """Return the row under a key. If it is None, the caller makes the call."""
        row = self._rows.get(short_key(key))
        if row is None:
            self.before_call(key)
        return row

    def recorded(self, key: str) -> StepCheckpoint | None:
        """Return the row under a key, or None, without making a call."""
        return self._rows.get(short_key(key))

    @property
    def size(self) -> int:
        """The number of recorded rows."""
        return len(self._rows)

    @cached_property
    def call_ids(self) -> set[str]:
        """The ids of the tool calls that the run's models requested. A model call adds its own."""
        responses = [row for row in self._rows.values() if row.kind == row.Kind.MODEL]
        return {
            item["call_id"]
            for row in responses
            for item in (row.result or {}).get("output", ())
            if isinstance(item.get("call_id"), str)
        }

    def find_by_prefix(self, prefix: str) -> list[StepCheckpoint]:
        """Return the rows whose keys have this prefix, in the order of recording."""
        return [row for key, row in self._rows.items() if key.startswith(prefix)]

    def saved_state(self) -> Any:
        """Return the state that ``save_state`` wrote last, or None."""
        row = self._rows.get(STATE_KEY)
        return row.result if row else None

    @property
    def retried_attempt(self) -> int:
        """The number of the attempt after which a person retried the run last, or 0."""
        row = self._rows.get(RETRY_KEY)
        return int(row.result) if row else 0

    def usage(self) -> dict[str, Any]:
        """Return the total usage of the recorded model calls, including earlier generations."""
        return total_usage([*self._earlier, *self._rows.values()])

    # Record

    async def record(
        self,
        result: CallResult,
        new_events: Sequence[Event] = (),
        replaces: StepCheckpoint | None = None,
    ) -> StepCheckpoint:
        """Write a result with its events. It overwrites ``replaces``, an intent or earlier result.

        Raises StaleAttempt if the attempt has lost the run.
        """
        entry = Entry.of(self.attempt, result, [*self.pop_deferred(), *new_events], replaces)
        joined, write = self.attempt.joined_transaction, journal_entries.write_entries
        return await self._add(event_loop.write_batched(write, entry, joined=joined))

    async def record_intent(
        self, key: str, kind: str, name: str, fingerprint: str = ""
    ) -> StepCheckpoint:
        """Record, before a call that must not be repeated, that it is about to be made."""
        write = journal_entries.record_intent
        return await self._write(write, self.attempt, key, kind, name, fingerprint)

    async def record_repeat(self, intent: StepCheckpoint) -> StepCheckpoint:
        """Record that a call is made again, because a person decided that."""
        return await self._write(journal_entries.record_repeat, self.attempt, intent)

    async def save_state(self, state: Any) -> None:
        """Write a state for later attempts. It replaces the previous one."""
        row = self._rows.get(STATE_KEY)
        is_new = row is None or row.result != state
        await self._write(journal_entries.save_state, self.attempt, state, is_new)

    def defer(self, event: Event) -> None:
        """Add an event to the attempt's next write."""
        self._deferred.append(event)

    def pop_deferred(self) -> list[Event]:
        """Remove and return the events that wait for a write."""
        deferred, self._deferred = self._deferred, []
        return deferred

    async def _write(self, write: Callable[..., StepCheckpoint], *args: Any) -> StepCheckpoint:
        # Beside a synchronous tool that occupies the run's thread; but a write that belongs to
        # the caller's transaction needs that thread's connection.
        run = (
            event_loop.run_sync if self.attempt.joined_transaction else event_loop.run_sync_unqueued
        )
        return await self._add(run(write, *args))

    async def _add(self, written: Awaitable[StepCheckpoint]) -> StepCheckpoint:
        try:
            row = await written
        except (StaleAttempt, Error) as error:
            raise self.must_end(error) from None
        self._rows[row.key] = row
        self.after_record(row)
        return row

    # Refused responses

    def note_refusal(self, error: BaseException, key: str) -> None:
        """Remember that the SDK or a guardrail refused the response under a key with an error.

        The error may pass through the agents around the one that made the response.
        """
        causes = _chain(error)
        if not any(refusal in causes for refusal, _ in self._refusals):
            self._refusals.append((error, key))

    def refuse_responses(self, error: BaseException) -> None:
        """Write that the responses to which an error is due are not used again.

        A response is kept if a call that it requested was recorded: asked anew, the model may
        request the same call once more. It is kept if the agent was changed, too.
        """
        if isinstance(error, AgentChanged):
            return
        causes = _chain(error)
        for refusal, key in self._refusals:
            row = self.recorded(key)
            if row is not None and refusal in causes and not self._has_recorded_calls(key):
                journal_entries.refuse_response(self.attempt, row)

    def _has_recorded_calls(self, response_key: str) -> bool:
        path, _, number = response_key.rpartition(":model:")
        row = self._rows[short_key(response_key)]
        ids = [item["call_id"] for item in row.result["output"] if item.get("call_id")]
        return any(self.recorded(f"{path}:tool:{number}:{call_id}") for call_id in ids)

    # Approvals and questions

    def decided(self, key: str) -> ToolApproval | None:
        """Return the approval or question under a key if a person has decided it."""
        row = self._approvals.get(short_key(key))
        if row is None or row.is_open:
            return None
        self._used_decisions.add(row.key)
        return row

    def request(self, key: str, **columns: Any) -> RunSuspended:
        """Add an approval or question to this attempt. Return the error that suspends the run."""
        key = short_key(key)
        run = self.run
        for name in ("call_id", "tool", "agent", "question", "action"):
            columns[name] = column_text(ToolApproval, name, columns.get(name, ""))
        row = ToolApproval(run=run, generation=run.generation, key=key, **columns)
        self.requests.setdefault(key, self._approvals.get(key, row))
        return self.must_end(RunSuspended())

    def check_used(self) -> None:
        """Raise AgentChanged if a tool call that a person decided was not made."""
        for key, row in self._approvals.items():
            is_used = key in self._used_decisions or key in self._rows
            if row.kind == ToolApproval.Kind.TOOL and not row.is_open and not is_used:
                raise AgentChanged(
                    f"The call of {row.tool!r} by the agent {row.agent!r} was {row.decision}, and "
                    "is not made any more: keep agents and tools under their names while runs "
                    "wait, or start the run again."
                )

    # The end of the attempt

    def must_end[E: BaseException](self, error: E) -> E:
        """Store and return the error that ends the attempt, even if host code swallows it.

        If several errors must end the attempt, the first one does.
        """
        self._end = self._end or error
        return error

    @contextmanager
    def enforced_end(self) -> Iterator[None]:
        """After this block, raise the error that must end the attempt, if one is stored.

        Wrap every block in which host code or the SDK may swallow or replace that error.
        """
        try:
            yield
        finally:
            self.raise_end()

    def raise_end(self) -> None:
        """Raise the error that must end the attempt, if one is stored."""
        if self._end is not None:
            raise self._end


def _chain(error: BaseException) -> list[BaseException]:
    """Return an error and its causes."""
    causes: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in causes:
        causes.append(cause)
        cause = cause.__cause__
    return causes


journal_class: type[Journal] = Journal
"""The journal class that attempts load. Tests replace it with a subclass that has hooks."""


def load_journal(attempt: Attempt) -> Journal:
    """Return the journal of an attempt."""
    return journal_class.load(attempt)
