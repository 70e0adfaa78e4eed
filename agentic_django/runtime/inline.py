"""Creates, claims and ends inline runs, which a host executes in its own code without a queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, cast
from uuid import UUID

from django.db import transaction
from django.db.models import Q

from agentic_django import validation
from agentic_django.concurrency import event_loop
from agentic_django.engine import claims, heartbeat, lifecycle, sessions
from agentic_django.engine.attempt import Attempt
from agentic_django.engine.run_rows import run_rows
from agentic_django.exceptions import (
    BadInput,
    Conflict,
    RunSuspended,
    RunWaiting,
    StaleAttempt,
    StepCancelledError,
)
from agentic_django.models import AgentRun, database
from agentic_django.models.querysets import RunQuerySet, lease_expired
from agentic_django.openai_agents.error_classification import RetryDecision, decide_retry
from agentic_django.runtime import attempt_end
from agentic_django.runtime.attempt_end import AttemptContext
from agentic_django.serialization import to_jsonable

__all__ = ["AGENT_KEY", "claim_or_create", "execute"]

AGENT_KEY = ".inline"
"""The agent key of inline runs. The keys of registered agents cannot start with a dot."""


def claim_or_create(
    run_id: str | UUID | None, user: Any, conversation_id: str | None, first: Mapping[str, Any]
) -> Attempt:
    """Create a run with these columns and claim it, or claim the run with this id to resume it.

    Raises Conflict, and changes nothing, if the run cannot start now.
    """
    joined_transaction = transaction.get_connection(database()).in_atomic_block
    with transaction.atomic(using=database()):
        run = _find(run_id)
        run = _make(run_id, user, conversation_id, first) if run is None else run
        if run.status != AgentRun.Status.PENDING:
            if run.status == AgentRun.Status.RUNNING:  # Its process may have died.
                is_orphaned = Q(attempt=run.attempt) & lease_expired()
                lifecycle.recover(run, is_orphaned, may_requeue=False)
            lifecycle.retry(run)
            run = _whole().get(pk=run.pk)
        attempt = claims.claim_inline(run, joined_transaction=joined_transaction)
        if attempt is None:
            raise Conflict(
                f"Run {run.pk} cannot be executed now: another run of its session has not "
                "ended, or the concurrency limit is reached. Try again later."
            )
    return attempt


def _find(run_id: str | UUID | None) -> AgentRun | None:
    if run_id is None:
        return None
    try:
        run = _whole().filter(pk=UUID(str(run_id))).first()
    except ValueError:
        raise BadInput(errors={"run_id": f"{str(run_id)!r} is not a UUID."}) from None
    if run is not None and not run.is_inline:
        raise Conflict(f"Run {run.pk} is for a worker, and cannot be executed inline.")
    return run


def _whole() -> RunQuerySet:
    return run_rows().select_related("session", "owner")


def _make(
    run_id: Any, user: Any, conversation_id: str | None, first: Mapping[str, Any]
) -> AgentRun:
    for name, value in first.items():
        validation.check_json(value, name)
    run = AgentRun(
        owner=user,
        agent_key=AGENT_KEY,
        is_inline=True,
        session=sessions.get_or_create_session(conversation_id, user)[0]
        if conversation_id
        else None,
        input_payload=to_jsonable(first["input_messages"], "input_messages"),
        context=to_jsonable(dict(first["params"] or {}), "params"),
        metadata=to_jsonable(dict(first["metadata"] or {}), "metadata"),
        **({"pk": UUID(str(run_id))} if run_id is not None else {}),
    )
    run.save(using=database(), force_insert=True)
    return run


@asynccontextmanager
async def execute(context: AttemptContext) -> AsyncIterator[None]:
    """Execute an inline run in this block, and end the run with the block.

    Raises RunWaiting if the run waits for a person. Raises StepCancelledError if the run was
    cancelled or claimed by another process.
    """
    attempt = context.journal.attempt
    error: BaseException | None = None
    task = cast("asyncio.Task[object]", asyncio.current_task())
    cancellations = task.cancelling()
    try:
        with heartbeat.keep_lease(attempt), attempt_end.work_block(context, "result"):
            yield
    except (Exception, asyncio.CancelledError, SystemExit, RunSuspended, StaleAttempt) as raised:  # noqa: BLE001 - it ends the attempt
        error = raised
    if attempt.has_lost_run:
        await _absorb_cancellation(task, cancellations)
    if isinstance(error, StaleAttempt):
        raise StepCancelledError from None
    if error is not None and attempt.has_lost_run and task.cancelling() == cancellations:
        raise StepCancelledError from error
    try:
        end = attempt_end.end_attempt(
            context, error, run_verb=event_loop.run_sync, decide=_decide_failure
        )
        error = await asyncio.shield(end)  # Even if the host's task is cancelled.
    except StaleAttempt:
        raise StepCancelledError from None
    if isinstance(error, RunSuspended):
        raise RunWaiting from None
    if error is not None:
        raise error


def _decide_failure(error: BaseException) -> RetryDecision:
    """Return the code of a failure. The run is not requeued, because only its host resumes it."""
    if isinstance(error, SystemExit):  # The host's process is exiting.
        return RetryDecision("lost")
    return RetryDecision(decide_retry(error).code)


async def _absorb_cancellation(task: asyncio.Task[object], cancellations: int) -> None:
    """Absorb the cancellation with which the heartbeat ended an attempt that has lost its run.

    The cancellation may not have arrived yet. The host's next ``await`` must not receive it.
    """
    if task.cancelling() == cancellations:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(heartbeat.BEAT_SECONDS)
    task.uncancel()
