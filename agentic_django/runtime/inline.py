"""Runs that a host performs in its own code: claimed here, never by a queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from typing import Any, Protocol, cast
from uuid import UUID

from django.db import transaction
from django.db.models import Q

from agentic_django import validation
from agentic_django.concurrency import event_loop
from agentic_django.engine import claims, heartbeat, lifecycle, sessions, transitions
from agentic_django.engine import journal as journals
from agentic_django.engine.journal import Journal
from agentic_django.engine.lifecycle import Completion, Failure
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
from agentic_django.openai_agents.errors import decide_retry
from agentic_django.serialization import to_jsonable
from agentic_django.sessions import RunHistory

__all__ = ["AGENT_KEY", "claim_or_create", "hold", "load_journal"]

AGENT_KEY = ".inline"
"""The agent key of runs that no agent drives; no host's own begins with a dot."""


def claim_or_create(
    run_id: str | UUID | None, user: Any, conversation_id: str | None, first: Mapping[str, Any]
) -> AgentRun:
    """Make a run and claim it, or claim the one that is to be resumed; or change nothing."""
    joined = transaction.get_connection(database()).in_atomic_block
    with transaction.atomic(using=database()):
        run = _find(run_id)
        run = _make(run_id, user, conversation_id, first) if run is None else run
        if run.status != AgentRun.Status.PENDING:
            _reopen(run)
            run = _whole().get(pk=run.pk)
        if not claims.claim_inline(run):
            raise Conflict(
                f"Run {run.pk} cannot be performed now: another of its conversation has not "
                "ended, or as many run as may at once."
            )
    run.joined_transaction = joined
    return run


def _find(run_id: str | UUID | None) -> AgentRun | None:
    if run_id is None:
        return None
    try:
        run = _whole().filter(pk=UUID(str(run_id))).first()
    except ValueError:
        raise BadInput(errors={"run_id": f"{str(run_id)!r} is not a UUID."}) from None
    if run is not None and not run.is_inline:
        raise Conflict(f"Run {run.pk} is for a worker, and cannot be performed inline.")
    return run


def _whole() -> RunQuerySet:
    return transitions.run_rows().select_related("session", "owner")


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


def _reopen(run: AgentRun) -> None:
    """Bring a run that ended badly, or whose process died, back in line."""
    if run.status == AgentRun.Status.RUNNING:
        lifecycle.recover(run, "fail", Q(attempt=run.attempt) & lease_expired())
    lifecycle.retry(run)


async def load_journal(run: AgentRun) -> Journal:
    """Return the journal of a run that was claimed."""
    return await event_loop.run_sync(journals.load_journal, run)


class Opened(Protocol):
    """What is held here: a run's context."""

    run: AgentRun
    journal: Journal
    history: RunHistory
    result: Any


@asynccontextmanager
async def hold(context: Opened) -> AsyncIterator[None]:
    """Keep a run while its host performs it, and end it as the block ends."""
    task = cast("asyncio.Task[object]", asyncio.current_task())
    cancellations = task.cancelling()
    try:
        with heartbeat.keep_lease(context.run) as held:
            try:
                yield
            finally:
                context.journal.check()
            output = to_jsonable(context.result, "result")
    except StaleAttempt:
        await _take_in(held, cancellations)
        raise StepCancelledError from None
    except RunSuspended:
        await _end(_park, context)
        raise RunWaiting from None
    except (Exception, asyncio.CancelledError, SystemExit) as error:
        await _take_in(held, cancellations)
        if held.is_lost and task.cancelling() == cancellations:
            raise StepCancelledError from error
        await _end(_end_badly, context, error)
        raise
    await _take_in(held, cancellations)
    await _end(_complete, context, output)


async def _take_in(held: heartbeat.HeldAttempt, before: int) -> None:
    """Take back the cancellation by which the task was told that it lost its run.

    It may be on its way yet; what the host does next must not meet it.
    """
    if not held.is_lost:
        return
    if held.task.cancelling() == before:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(heartbeat.BEAT_SECONDS)
    held.task.uncancel()


async def _end(verb: Callable[..., None], *args: Any) -> None:
    """Write how a run ends, even if the host's task is cancelled meanwhile."""
    try:
        await asyncio.shield(event_loop.run_sync(verb, *args))
    except StaleAttempt:
        raise StepCancelledError from None


def _park(context: Opened) -> None:
    journal = context.journal
    asked, told = list(journal.asking.values()), journal.take_deferred()
    lifecycle.suspend(context.run, asked, journal.usage(), told)


def _complete(context: Opened, output: Any) -> None:
    journal = context.journal
    added, told = context.history.added, journal.take_deferred()
    lifecycle.complete([Completion(context.run, output, added, journal.usage(), told)])


def _end_badly(context: Opened, error: BaseException) -> None:
    if isinstance(error, StepCancelledError | asyncio.CancelledError):
        lifecycle.cancel_held(context.run)
    else:
        code = decide_retry(error).code if isinstance(error, Exception) else "lost"
        failure = Failure(code, error)
        lifecycle.fail(context.run, failure, context.journal.take_deferred())
