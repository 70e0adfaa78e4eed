"""How a run ends or goes back in line: one transaction over its row, events and conversation."""

from __future__ import annotations

import random
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import models, transaction
from django.db.models import F
from django.db.models.functions import Now
from django.utils.translation import gettext as _

from agentic_django import (
    approvals,
    dispatch,
    drafts,
    events,
    journal,
    runs,
    sessions,
    signals,
    slots,
    turns,
)
from agentic_django.conf import settings
from agentic_django.events import Event, EventType
from agentic_django.exceptions import Conflict, sentence
from agentic_django.models import AgentRun, StepCheckpoint, ToolApproval, database

__all__ = [
    "Failure",
    "Outcome",
    "cancel",
    "complete",
    "decide",
    "expire",
    "fail",
    "fails_lost",
    "hand_back",
    "reclaim",
    "retry",
    "stop",
    "suspend",
    "try_later",
]

_LONGEST_DELAY = 60.0

_MERCY = 3
"""So many times as often a run may be lost with others of its process as it may be alone."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an attempt ended badly, for users (a code and its sentence) and for operators."""

    code: str
    error: BaseException | None = None

    @property
    def columns(self) -> dict[str, str]:
        """What the run's row says of it."""
        detail = "".join(traceback.format_exception(self.error)) if self.error else ""
        text = str(sentence(self.code))
        stored = detail.encode("utf-8", "backslashreplace").decode().replace("\0", "")
        return {"error_code": self.code, "error": text, "error_detail": stored}

    @property
    def verb(self) -> str:
        """The transition that ends a run so."""
        return "time_out" if self.code == "timed_out" else "fail"

    def told(self) -> Event:
        """The event that tells of it."""
        event = runs.TRANSITIONS[self.verb].event
        return events.draft(event, error=str(sentence(self.code)), code=self.code)


_NO_ERROR = {"error_code": "", "error": "", "error_detail": ""}


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a run has come to."""

    run: AgentRun
    output: Any
    items: Sequence[Any]
    """What it adds to its conversation."""
    usage: dict[str, Any]
    told: Sequence[Event] = ()
    """Events that are yet to be written."""

    def change(self) -> runs.Change:
        """Return what is written to the run's row."""
        ended = events.draft(EventType.RUN_COMPLETED, output=self.output)
        kept = _JSON_NULL if self.output is None else self.output
        columns = {**_NO_ERROR, "final_output": kept, "usage": self.usage}
        return runs.ending(self.run, "complete", [*self.told, ended], **columns)


def complete(outcomes: Sequence[Outcome], *, waits: bool = True) -> list[None]:
    """End runs with their outputs; their items join the conversations. All end, or none.

    Raises RunMoved if an attempt no longer holds its run; see ``runs.change``.
    """
    with runs.together(*(each.run for each in outcomes), waits=waits):
        runs.change([each.change() for each in outcomes], waits=waits)
        for run in (each.run for each in outcomes):
            if run.has_drafts or run.attempt > 1:  # Of calls that failed, and were not made again.
                drafts.forget_all(run)
        sessions.leave([(each.run, each.items) for each in outcomes], waits=waits)
        for each in outcomes:
            each.run.final_output = each.output
            runs.announce(signals.agent_run_completed, each.run)
        dispatch.send_next([each.run for each in outcomes if _is_followed(each)])
    return [None] * len(outcomes)


_JSON_NULL = models.Value("null", output_field=models.TextField())


def _is_followed(outcome: Outcome) -> bool:
    """Whether another run may wait for this one; writing items has just read the counter."""
    run = outcome.run
    if run.session is None or slots.caps():
        return bool(slots.caps())
    return not outcome.items or run.session.run_count > run.position


def fail(run: AgentRun, failure: Failure, told: Sequence[Event] = ()) -> None:
    """End a run that this attempt holds, with a reason."""
    with runs.together(run):
        runs.finish(run, failure.verb, [*told, failure.told()], **failure.columns)
        _leave(run)
        runs.announce(signals.agent_run_failed, run, error=failure.error)


def _leave(run: AgentRun) -> None:
    """Write what an incomplete run leaves behind, and let the next one start."""
    recorded = StepCheckpoint.objects.using(database()).filter(run=run)
    runs.bill(run, journal.total_usage(recorded))
    if run.attempt:  # What never began leaves nothing: what stands before it is yet to end.
        sessions.leave([(run, turns.items_of(run))])
        drafts.forget_all(run)
    dispatch.send_next([run])


def try_later(
    run: AgentRun, failure: Failure, after: float = 0.0, told: Sequence[Event] = ()
) -> None:
    """Put a run back in line for what may pass, or fail it if that was the last attempt."""
    if run.failures + 1 >= most_attempts(run):
        fail(run, failure, told)
        return
    delay = dispatch.soonest(max(after, backoff(run.failures)))
    event = _retrying(run, failure.code, delay)
    with runs.together(run):
        runs.finish(run, "requeue", [*told, event], **_in_line(delay), failures=run.failures + 1)
        if not delay:
            dispatch.send(run)


def hand_back(run: AgentRun) -> None:
    """Put a run that this process holds back in line, because the process is ending.

    One that its host performs inline fails instead: only the host can resume it.
    """
    if run.is_inline:
        fail(run, Failure("lost"))
        return
    event = _retrying(run, "handed_back", 0)
    with runs.together(run):
        runs.finish(run, "requeue", [event], **_in_line(0))
        dispatch.send(run)


def reclaim(run: AgentRun, mode: str, guard: models.Q) -> str:
    """Requeue or fail a run whose holder is gone; returns which it was.

    Raises Conflict if the guard no longer holds: the holder is back, or another was faster.
    """
    if fails_lost(run, mode):
        _fail_lost(run, guard)
        return "fail"
    event, line = _retrying(run, "lost", 0), _in_line(0)
    with transaction.atomic(using=database()):
        runs.move(
            run, "requeue", [event], guard, **line, failures=F("failures") + 1, lease_ends_at=None
        )
        dispatch.send(run)
    return "requeue"


def fails_lost(run: AgentRun, mode: str) -> bool:
    """Whether a run whose holder is gone fails: its host's own, or one lost too often, always.

    One that was lost with others of its process is hardly the one that ended it.
    """
    fell_with_others = getattr(run, "fell_with_others", False)  # See ``recovery.lost``.
    most = most_attempts(run) * (_MERCY if fell_with_others else 1)
    return mode == "fail" or run.is_inline or run.failures + 1 >= most


def _fail_lost(run: AgentRun, guard: models.Q) -> None:
    failure = Failure("lost")
    with transaction.atomic(using=database()):
        runs.move(run, "fail", [failure.told()], guard, **_ended(), **failure.columns)
        _leave(run)
        runs.announce(signals.agent_run_failed, run, error=None)


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
    waiting = events.draft(EventType.RUN_WAITING, reason="approval")
    parked = {"failures": 0, "usage": usage, "holder": ""}
    with runs.together(run):
        runs.finish(run, "suspend", [*told, *requested, waiting], **parked)
        approvals.request(asked)
        for row in asked:
            runs.announce(signals.agent_approval_requested, run, approval=row)
        if settings.CONCURRENCY_LIMIT is not None:
            dispatch.send_next([run])


def _told(kind: EventType, approval: ToolApproval, **more: Any) -> Event:
    return events.draft(
        kind,
        approval_id=str(approval.pk),
        call_id=approval.call_id,
        tool=approval.tool,
        arguments=approval.given,
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
        if not runs.hold_waiting(run):  # Others who decide about this run wait for us here.
            approvals.refuse_decided(approval)
            runs.refuse_unless_waiting(run)
        approvals.take(approval, decision, by=by, reason=reason, answer=answer)
        decided = _decided(approval, name)
        if approvals.is_left(run):
            runs.note(run, [decided])
            return
        again = _retrying(run, "decided", 0)
        runs.move(run, "resume", [decided, again], **_in_line(0))
        if not run.is_inline:
            dispatch.send(run)


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


def stop(run: AgentRun) -> None:
    """End a run that this attempt holds as cancelled, because its own work wants that."""
    with runs.together(run):
        runs.finish(run, "cancel", [events.draft(EventType.RUN_CANCELLED, by="", by_owner=False)])
        _leave(run)
        runs.announce(signals.agent_run_cancelled, run)


def cancel(run: AgentRun, by: str = "", *, by_owner: bool = False) -> None:
    """End a run because a person wants that; raises Conflict if it has ended already."""
    event = events.draft(EventType.RUN_CANCELLED, by=by, by_owner=by_owner)
    with transaction.atomic(using=database()):
        runs.move(run, "cancel", [event], **_ended())
        _leave(run)
        runs.announce(signals.agent_run_cancelled, run)


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
        runs.move(run, "retry", [event], **line, generation=generation)
        sessions.forget(run)
        approvals.reopen(run)
        if not run.is_inline:
            dispatch.send(run)


def _refuse_unless_last(run: AgentRun) -> None:
    if run.session is None:
        return
    run.session.lock()
    if runs.rows().filter(session=run.session_id, position__gt=run.position).exists():
        raise Conflict(_("Only the last run of a conversation can be tried again."))


def _ended() -> dict[str, Any]:
    return {"finished_at": Now(), "lease_ends_at": None, "activity": ""}


def _in_line(delay: float) -> dict[str, Any]:
    due = Now() + timedelta(seconds=delay) if delay else Now()
    return {"available_at": due, "enqueued_at": None, "task_id": "", "holder": "", "activity": ""}


def _retrying(run: AgentRun, reason: str, delay: float, **more: Any) -> Event:
    seconds = round(delay, 3)
    return events.draft(
        EventType.RUN_RETRYING, attempt=run.attempt, reason=reason, delay_seconds=seconds, **more
    )


def most_attempts(run: AgentRun) -> int:
    """Return how many attempts in a row may come to nothing, for this run."""
    setting = settings.MAX_ATTEMPTS
    by_agent = {"*": setting} if isinstance(setting, int) else setting
    own = run.metadata.get("max_attempts") if isinstance(run.metadata, dict) else None
    if isinstance(own, int) and own > 0:
        return own
    return by_agent.get(run.agent_key) or by_agent.get("*", 4)


def backoff(failures: int) -> float:
    """Return the seconds to wait after so many failures: 1, 2, 4 … 60, each give or take half.

    The spread keeps runs that failed together from coming back together.
    """
    return min(2.0**failures, _LONGEST_DELAY) * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
