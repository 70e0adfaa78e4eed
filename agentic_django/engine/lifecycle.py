"""Implements the verbs that change a run's status.

Each is one transaction. The transaction writes the row, the events and the session items. The verbs
of an attempt are guarded by its number. They raise StaleAttempt if it has lost the run. The verbs
of people and of the sweep are guarded by the run's status. They raise Conflict if it does not
match.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import models, transaction
from django.db.models import F
from django.db.models.functions import Now
from django.utils.translation import gettext as _

from agentic_django import signals
from agentic_django.conf import settings
from agentic_django.engine import (
    approval_requests,
    concurrency_limits,
    dispatch,
    drafts,
    events,
    fenced_writes,
    journal_entries,
    retries,
    session_items,
    transitions,
    unfinished_turns,
    usage,
)
from agentic_django.engine.attempt import Attempt
from agentic_django.engine.events import Event, EventType
from agentic_django.engine.run_rows import run_rows, send_signal_on_commit
from agentic_django.exceptions import Conflict, message_for_code
from agentic_django.models import AgentRun, StepCheckpoint, ToolApproval, database

__all__ = [
    "Completion",
    "Failure",
    "cancel",
    "cancel_attempt",
    "complete",
    "fail",
    "recover",
    "release",
    "resume",
    "retry",
    "retry_later",
    "suspend",
]

# Verbs of an attempt


@dataclass(frozen=True, slots=True)
class Completion:
    """The result of an attempt that completes its run."""

    attempt: Attempt
    output: Any
    items: Sequence[Any]
    """The items that the run adds to its session."""
    usage: dict[str, Any]
    new_events: Sequence[Event] = ()
    """Deferred events, written before the completion's own."""

    @property
    def run(self) -> AgentRun:
        """Return the run that is completed."""
        return self.attempt.run

    def change(self) -> fenced_writes.RunChange:
        """Return the change of the run's row."""
        completed = events.new_event(EventType.RUN_COMPLETED, output=self.output)
        output = _JSON_NULL if self.output is None else self.output
        return fenced_writes.ending_change(
            self.attempt,
            "complete",
            [*self.new_events, completed],
            **_NO_ERROR,
            final_output=output,
            usage=self.usage,
        )


_NO_ERROR = {"error_code": "", "error": "", "error_detail": ""}
_JSON_NULL = models.Value("null", output_field=models.TextField())


def complete(completions: Sequence[Completion], *, waits: bool = True) -> list[None]:
    """Complete all runs or none: write their outputs, and add their items to the sessions.

    Raises StaleAttempt if an attempt has lost its run; see ``fenced_writes.write_changes``.
    """
    with fenced_writes.fenced(*(each.attempt for each in completions), waits=waits):
        fenced_writes.write_changes([each.change() for each in completions], waits=waits)
        for each in completions:
            each.attempt.assign({"final_output": each.output})
            if each.attempt.has_drafts or each.attempt.number > 1:  # Of calls that failed.
                drafts.delete_drafts(each.run)
        items = [(each.run, each.items) for each in completions]
        session_items.append_run_items(items, waits=waits)
        for each in completions:
            send_signal_on_commit(signals.agent_run_completed, each.run)
        dispatch.enqueue_next([each.run for each in completions if _may_be_followed(each)])
    return [None] * len(completions)


def _may_be_followed(completion: Completion) -> bool:
    """Whether another run may wait for this one. Writing the items has just read ``run_count``."""
    run = completion.run
    if run.session is None or concurrency_limits.limits():
        return bool(concurrency_limits.limits())
    return not completion.items or run.session.run_count > run.position


def suspend(
    attempt: Attempt,
    requests: Sequence[ToolApproval],
    usage: dict[str, int],
    new_events: Sequence[Event] = (),
) -> None:
    """Suspend a run until people have decided the attempt's approvals and questions."""
    run = attempt.run
    requested = [
        approval_requests.approval_event(EventType.APPROVAL_REQUESTED, row) for row in requests
    ]
    waiting = events.new_event(EventType.RUN_WAITING, reason="approval")
    columns = {"failures": 0, "usage": usage, "holder": ""}
    with fenced_writes.fenced(attempt):
        all_events = [*new_events, *requested, waiting]
        fenced_writes.end_attempt(attempt, "suspend", all_events, **columns)
        approval_requests.create_requests(requests)
        for row in requests:
            send_signal_on_commit(signals.agent_approval_requested, run, approval=row)
        if settings.CONCURRENCY_LIMIT is not None:
            dispatch.enqueue_next([run])


@dataclass(frozen=True, slots=True)
class Failure:
    """The cause of a failure: a code and its message for users, the exception for operators."""

    code: str
    error: BaseException | None = None

    @property
    def columns(self) -> dict[str, str]:
        """Return the columns of the run that describe the failure."""
        detail = "".join(traceback.format_exception(self.error)) if self.error else ""
        text = str(message_for_code(self.code))
        stored = detail.encode("utf-8", "backslashreplace").decode().replace("\0", "")
        return {"error_code": self.code, "error": text, "error_detail": stored}

    @property
    def verb(self) -> str:
        """Return the transition that ends the run."""
        return "time_out" if self.code == "timed_out" else "fail"

    def event(self) -> Event:
        """Return the event of the failure."""
        kind = transitions.TRANSITIONS[self.verb].event
        return events.new_event(kind, error=str(message_for_code(self.code)), code=self.code)


def fail(attempt: Attempt, failure: Failure, new_events: Sequence[Event] = ()) -> None:
    """Fail an attempt's run, or time it out."""
    run = attempt.run
    with fenced_writes.fenced(attempt):
        all_events = [*new_events, failure.event()]
        fenced_writes.end_attempt(attempt, failure.verb, all_events, **failure.columns)
        _keep_unfinished(run)
        send_signal_on_commit(signals.agent_run_failed, run, error=failure.error)


def retry_later(
    attempt: Attempt, failure: Failure, after: float = 0.0, new_events: Sequence[Event] = ()
) -> None:
    """Requeue a run after a temporary failure, or fail it if this was the last attempt.

    ``after`` is the minimum delay in seconds.
    """
    run = attempt.run
    if retries.is_last_attempt(run):
        fail(attempt, failure, new_events)
        return
    delay = dispatch.allowed_delay(max(after, retries.backoff(run.failures)))
    all_events = [*new_events, _retrying_event(run, failure.code, delay)]
    columns = {**_queued_columns(delay), "failures": run.failures + 1}
    with fenced_writes.fenced(attempt):
        fenced_writes.end_attempt(attempt, "requeue", all_events, **columns)
        if not delay:
            dispatch.enqueue_on_commit(run)


def release(attempt: Attempt) -> None:
    """Requeue a run, because this process is shutting down.

    An inline run fails instead, because only its host can resume it.
    """
    run = attempt.run
    if run.is_inline:
        fail(attempt, Failure("lost"))
        return
    event = _retrying_event(run, "handed_back")
    with fenced_writes.fenced(attempt):
        fenced_writes.end_attempt(attempt, "requeue", [event], **_queued_columns())
        dispatch.enqueue_on_commit(run)


def cancel_attempt(attempt: Attempt) -> None:
    """Cancel a run at the request of its own code."""
    event = events.new_event(EventType.RUN_CANCELLED, by="", by_owner=False)
    with fenced_writes.fenced(attempt):
        fenced_writes.end_attempt(attempt, "cancel", [event])
        _keep_unfinished(attempt.run)
        send_signal_on_commit(signals.agent_run_cancelled, attempt.run)


# Verbs of the sweep


def recover(
    run: AgentRun, guard: models.Q, *, may_requeue: bool = True, lost_with_others: bool = False
) -> str:
    """Requeue or fail a run whose worker died. Return the verb: "requeue" or "fail".

    ``lost_with_others`` is true if the worker died with several runs. Raises Conflict if the guard
    no longer matches, because the worker is back or another process has recovered the run.
    """
    if not may_requeue or retries.fails_when_orphaned(run, lost_with_others=lost_with_others):
        failure = Failure("lost")
        columns = {**_ended_columns(), **failure.columns}
        with transaction.atomic(using=database()):
            fenced_writes.change_status(run, "fail", [failure.event()], guard, **columns)
            _keep_unfinished(run)
            send_signal_on_commit(signals.agent_run_failed, run, error=None)
        return "fail"
    columns = {**_queued_columns(), "failures": F("failures") + 1, "lease_ends_at": None}
    with transaction.atomic(using=database()):
        event = _retrying_event(run, "lost")
        fenced_writes.change_status(run, "requeue", [event], guard, **columns)
        dispatch.enqueue_on_commit(run)
    return "requeue"


# Verbs of people


def resume(run: AgentRun, new_events: Sequence[Event]) -> None:
    """Requeue a waiting run, because people have decided all its approvals and questions."""
    all_events = [*new_events, _retrying_event(run, "decided")]
    with transaction.atomic(using=database()):
        fenced_writes.change_status(run, "resume", all_events, **_queued_columns())
        if not run.is_inline:
            dispatch.enqueue_on_commit(run)


def cancel(run: AgentRun, by: str = "", *, by_owner: bool = False) -> None:
    """Cancel a run at a person's request. Raises Conflict if it has ended."""
    event = events.new_event(EventType.RUN_CANCELLED, by=by, by_owner=by_owner)
    with transaction.atomic(using=database()):
        fenced_writes.change_status(run, "cancel", [event], **_ended_columns())
        _keep_unfinished(run)
        send_signal_on_commit(signals.agent_run_cancelled, run)


def retry(run: AgentRun, *, fresh: bool = False, by: str = "") -> None:
    """Requeue a failed, timed out or cancelled run at a person's request.

    The run continues from its journal. With ``fresh``, it starts a new generation with an empty
    journal. Raises Conflict if the run has another status, or if its session has a later run.
    """
    details = {"anew": True} if fresh else {}
    event = _retrying_event(run, f"by {by}" if by else "asked", **details)
    columns = {
        **_queued_columns(),
        **_NO_ERROR,
        "failures": 0,
        "active_seconds": 0,
        "finished_at": None,
        "generation": F("generation") + (1 if fresh else 0),
    }
    with transaction.atomic(using=database()):
        if run.session is not None:
            run.session.lock()
            runs = run_rows().filter(session=run.session_id)
            if runs.filter(position__gt=run.position).exists():
                raise Conflict(_("Only the last run of a conversation can be retried."))
        if not fresh:
            journal_entries.note_retry(run, run.generation)
        fenced_writes.change_status(run, "retry", [event], **columns)
        session_items.delete_run_items(run)
        approval_requests.reopen_requests(run)
        if not run.is_inline:
            dispatch.enqueue_on_commit(run)


# Shared by the verbs


def _keep_unfinished(run: AgentRun) -> None:
    """Write the usage and the session items of a run that did not complete.

    Then enqueue the next run of the session.
    """
    recorded = StepCheckpoint.objects.using(database()).filter(run=run)
    fenced_writes.record_usage(run, usage.total_usage(recorded))
    if run.attempt:  # A run that never started adds nothing, because earlier runs have not ended.
        session_items.append_run_items([(run, unfinished_turns.unfinished_items(run))])
        drafts.delete_drafts(run)
    dispatch.enqueue_next([run])


def _queued_columns(delay: float = 0.0) -> dict[str, Any]:
    due = Now() + timedelta(seconds=delay) if delay else Now()
    return {"available_at": due, "enqueued_at": None, "task_id": "", "holder": "", "activity": ""}


def _ended_columns() -> dict[str, Any]:
    return {"finished_at": Now(), "lease_ends_at": None, "activity": ""}


def _retrying_event(run: AgentRun, reason: str, delay: float = 0.0, **details: Any) -> Event:
    return events.new_event(
        EventType.RUN_RETRYING,
        attempt=run.attempt,
        reason=reason,
        delay_seconds=round(delay, 3),
        **details,
    )
