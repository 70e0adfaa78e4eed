"""How a run ends or goes back in line: one transaction over its row, events and conversation."""

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
    approvals,
    concurrency_limits,
    dispatch,
    drafts,
    events,
    fenced_writes,
    journal,
    retries,
    session_items,
    transitions,
    unfinished_turns,
)
from agentic_django.engine.events import Event, EventType
from agentic_django.exceptions import Conflict, message_for_code
from agentic_django.models import AgentRun, StepCheckpoint, ToolApproval, database

__all__ = [
    "Completion",
    "Failure",
    "cancel",
    "cancel_held",
    "complete",
    "decide",
    "expire",
    "fail",
    "recover",
    "release",
    "retry",
    "retry_later",
    "suspend",
]


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt ended badly, for users (a code and its sentence) and for operators."""

    code: str
    error: BaseException | None = None

    @property
    def columns(self) -> dict[str, str]:
        """What the run's row says of it."""
        detail = "".join(traceback.format_exception(self.error)) if self.error else ""
        text = str(message_for_code(self.code))
        stored = detail.encode("utf-8", "backslashreplace").decode().replace("\0", "")
        return {"error_code": self.code, "error": text, "error_detail": stored}

    @property
    def verb(self) -> str:
        """The transition that ends a run so."""
        return "time_out" if self.code == "timed_out" else "fail"

    def told(self) -> Event:
        """The event that tells of it."""
        event = transitions.TRANSITIONS[self.verb].event
        return events.new_event(event, error=str(message_for_code(self.code)), code=self.code)


_NO_ERROR = {"error_code": "", "error": "", "error_detail": ""}


@dataclass(frozen=True, slots=True)
class Completion:
    """What a run has come to."""

    run: AgentRun
    output: Any
    items: Sequence[Any]
    """What it adds to its conversation."""
    usage: dict[str, Any]
    told: Sequence[Event] = ()
    """Events that are yet to be written."""

    def change(self) -> fenced_writes.RunChange:
        """Return what is written to the run's row."""
        ended = events.new_event(EventType.RUN_COMPLETED, output=self.output)
        kept = _JSON_NULL if self.output is None else self.output
        columns = {**_NO_ERROR, "final_output": kept, "usage": self.usage}
        return fenced_writes.ending_change(self.run, "complete", [*self.told, ended], **columns)


def complete(outcomes: Sequence[Completion], *, waits: bool = True) -> list[None]:
    """End runs with their outputs; their items join the conversations. All end, or none.

    Raises StaleAttempt if an attempt no longer holds its run; see ``runs.change``.
    """
    with fenced_writes.fenced(*(each.run for each in outcomes), waits=waits):
        fenced_writes.write_changes([each.change() for each in outcomes], waits=waits)
        for run in (each.run for each in outcomes):
            if run.has_drafts or run.attempt > 1:  # Of calls that failed, and were not made again.
                drafts.delete_drafts(run)
        session_items.append_run_items([(each.run, each.items) for each in outcomes], waits=waits)
        for each in outcomes:
            each.run.final_output = each.output
            transitions.send_signal_on_commit(signals.agent_run_completed, each.run)
        dispatch.enqueue_next([each.run for each in outcomes if _is_followed(each)])
    return [None] * len(outcomes)


_JSON_NULL = models.Value("null", output_field=models.TextField())


def _is_followed(outcome: Completion) -> bool:
    """Whether another run may wait for this one; writing items has just read the counter."""
    run = outcome.run
    if run.session is None or concurrency_limits.limits():
        return bool(concurrency_limits.limits())
    return not outcome.items or run.session.run_count > run.position


def fail(run: AgentRun, failure: Failure, told: Sequence[Event] = ()) -> None:
    """End a run that this attempt holds, with a reason."""
    with fenced_writes.fenced(run):
        fenced_writes.end_held(run, failure.verb, [*told, failure.told()], **failure.columns)
        _leave(run)
        transitions.send_signal_on_commit(signals.agent_run_failed, run, error=failure.error)


def _leave(run: AgentRun) -> None:
    """Write what an incomplete run leaves behind, and let the next one start."""
    recorded = StepCheckpoint.objects.using(database()).filter(run=run)
    fenced_writes.record_usage(run, journal.total_usage(recorded))
    if run.attempt:  # What never began leaves nothing: what stands before it is yet to end.
        session_items.append_run_items([(run, unfinished_turns.unfinished_items(run))])
        drafts.delete_drafts(run)
    dispatch.enqueue_next([run])


def retry_later(
    run: AgentRun, failure: Failure, after: float = 0.0, told: Sequence[Event] = ()
) -> None:
    """Put a run back in line for what may pass, or fail it if that was the last attempt."""
    if run.failures + 1 >= retries.max_attempts(run):
        fail(run, failure, told)
        return
    delay = dispatch.allowed_delay(max(after, retries.backoff(run.failures)))
    event = _retrying(run, failure.code, delay)
    with fenced_writes.fenced(run):
        fenced_writes.end_held(
            run, "requeue", [*told, event], **_in_line(delay), failures=run.failures + 1
        )
        if not delay:
            dispatch.enqueue_on_commit(run)


def release(run: AgentRun) -> None:
    """Put a run that this process holds back in line, because the process is ending.

    One that its host performs inline fails instead: only the host can resume it.
    """
    if run.is_inline:
        fail(run, Failure("lost"))
        return
    event = _retrying(run, "handed_back", 0)
    with fenced_writes.fenced(run):
        fenced_writes.end_held(run, "requeue", [event], **_in_line(0))
        dispatch.enqueue_on_commit(run)


def recover(run: AgentRun, mode: str, guard: models.Q) -> str:
    """Requeue or fail a run whose holder is gone; returns which it was.

    Raises Conflict if the guard no longer holds: the holder is back, or another was faster.
    """
    if retries.gives_up(run, mode):
        _fail_lost(run, guard)
        return "fail"
    event, line = _retrying(run, "lost", 0), _in_line(0)
    with transaction.atomic(using=database()):
        fenced_writes.change_status(
            run, "requeue", [event], guard, **line, failures=F("failures") + 1, lease_ends_at=None
        )
        dispatch.enqueue_on_commit(run)
    return "requeue"


def _fail_lost(run: AgentRun, guard: models.Q) -> None:
    failure = Failure("lost")
    with transaction.atomic(using=database()):
        fenced_writes.change_status(
            run, "fail", [failure.told()], guard, **_ended(), **failure.columns
        )
        _leave(run)
        transitions.send_signal_on_commit(signals.agent_run_failed, run, error=None)


def suspend(
    run: AgentRun,
    asked: Sequence[ToolApproval],
    usage: dict[str, int],
    told: Sequence[Event] = (),
) -> None:
    """Park a run that this attempt holds until persons have decided what it asks.

    What the run needs to go on is in its journal, and in the rows that are written here.
    """
    requested = [_told(EventType.APPROVAL_REQUESTED, row) for row in asked]
    waiting = events.new_event(EventType.RUN_WAITING, reason="approval")
    parked = {"failures": 0, "usage": usage, "holder": ""}
    with fenced_writes.fenced(run):
        fenced_writes.end_held(run, "suspend", [*told, *requested, waiting], **parked)
        approvals.create_requests(asked)
        for row in asked:
            transitions.send_signal_on_commit(signals.agent_approval_requested, run, approval=row)
        if settings.CONCURRENCY_LIMIT is not None:
            dispatch.enqueue_next([run])


def _told(kind: EventType, approval: ToolApproval, **more: Any) -> Event:
    return events.new_event(
        kind,
        approval_id=str(approval.pk),
        call_id=approval.call_id,
        tool=approval.tool,
        arguments=approval.effective_arguments,
        **more,
    )


def decide(
    approval: ToolApproval,
    decision: str,
    *,
    by: Any = None,
    name: str = "",
    reason: str = "",
    answer: Any = None,
) -> None:
    """Take one decision, and put the run back in line if it was the last that it waited for.

    Raises Conflict if the run does not wait, or if somebody has decided already.
    """
    run = approval.run
    with transaction.atomic(using=database()):
        if not fenced_writes.lock_waiting(
            run
        ):  # Others who decide about this run wait for us here.
            approvals.refuse_decided(approval)
            fenced_writes.refuse_unless_waiting(run)
        approvals.record_decision(approval, decision, by=by, reason=reason, answer=answer)
        decided = _decided(approval, name)
        if approvals.has_open(run):
            fenced_writes.append_while_waiting(run, [decided])
            return
        again = _retrying(run, "decided", 0)
        fenced_writes.change_status(run, "resume", [decided, again], **_in_line(0))
        if not run.is_inline:
            dispatch.enqueue_on_commit(run)


def _decided(approval: ToolApproval, name: str) -> Event:
    return _told(
        EventType.APPROVAL_DECIDED,
        approval,
        decision=approval.decision,
        by=name,
        reason=approval.reason,
    )


def expire(approval: ToolApproval) -> None:
    """Reject what nobody decided in time; the run goes on with that."""
    decide(approval, ToolApproval.Decision.EXPIRED)


def cancel_held(run: AgentRun) -> None:
    """End a run that this attempt holds as cancelled, because its own work wants that."""
    with fenced_writes.fenced(run):
        fenced_writes.end_held(
            run, "cancel", [events.new_event(EventType.RUN_CANCELLED, by="", by_owner=False)]
        )
        _leave(run)
        transitions.send_signal_on_commit(signals.agent_run_cancelled, run)


def cancel(run: AgentRun, by: str = "", *, by_owner: bool = False) -> None:
    """End a run because a person wants that; raises Conflict if it has ended already."""
    event = events.new_event(EventType.RUN_CANCELLED, by=by, by_owner=by_owner)
    with transaction.atomic(using=database()):
        fenced_writes.change_status(run, "cancel", [event], **_ended())
        _leave(run)
        transitions.send_signal_on_commit(signals.agent_run_cancelled, run)


def retry(run: AgentRun, *, fresh: bool = False, by: str = "") -> None:
    """Put a run that ended badly back in line because a person wants that.

    It goes on from its journal; a ``fresh`` one begins a new generation, which has a journal
    of its own. Raises Conflict if the run has not ended badly, or if its conversation has gone
    on: history has one order.
    """
    event = _retrying(run, f"by {by}" if by else "asked", 0, **({"anew": True} if fresh else {}))
    line = {**_in_line(0), **_NO_ERROR, "failures": 0, "active_seconds": 0, "finished_at": None}
    with transaction.atomic(using=database()):
        _refuse_unless_last(run)
        generation = F("generation") + (1 if fresh else 0)
        fenced_writes.change_status(run, "retry", [event], **line, generation=generation)
        session_items.delete_run_items(run)
        approvals.reopen(run)
        if not run.is_inline:
            dispatch.enqueue_on_commit(run)


def _refuse_unless_last(run: AgentRun) -> None:
    if run.session is None:
        return
    run.session.lock()
    if transitions.run_rows().filter(session=run.session_id, position__gt=run.position).exists():
        raise Conflict(_("Only the last run of a conversation can be retried."))


def _ended() -> dict[str, Any]:
    return {"finished_at": Now(), "lease_ends_at": None, "activity": ""}


def _in_line(delay: float) -> dict[str, Any]:
    due = Now() + timedelta(seconds=delay) if delay else Now()
    return {"available_at": due, "enqueued_at": None, "task_id": "", "holder": "", "activity": ""}


def _retrying(run: AgentRun, reason: str, delay: float, **more: Any) -> Event:
    seconds = round(delay, 3)
    return events.new_event(
        EventType.RUN_RETRYING, attempt=run.attempt, reason=reason, delay_seconds=seconds, **more
    )
