"""Runs that a host performs in its own code: claimed here, never by a queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol
from uuid import UUID, uuid4

from django.db.models import Q
from django.db.models.functions import Now

from agentic_django import heartbeat, lifecycle, runs, threads
from agentic_django import journal as journals
from agentic_django.exceptions import Conflict, StepCancelledError
from agentic_django.failures import verdict_on
from agentic_django.journal import Journal
from agentic_django.lifecycle import Failure
from agentic_django.models import AgentRun, AgentSession, database
from agentic_django.querysets import RunScope
from agentic_django.serialization import to_jsonable
from agentic_django.viewer import principal_of

__all__ = ["AGENT_KEY", "claim", "holding", "load"]

AGENT_KEY = "inline"
"""The agent key of runs that no agent drives."""


def claim(
    run_id: str | UUID | None, user: Any, conversation_id: str | None, first: Mapping[str, Any]
) -> AgentRun:
    """Make a run and claim it, or claim the one that is to be resumed."""
    run = _find(run_id)
    run = _make(run_id, user, conversation_id, first) if run is None else run
    if run.status != AgentRun.Status.PENDING:
        _reopen(run)
        run = _get(run.pk)
    if not runs.claim_inline(run):
        raise Conflict(f"Run {run.pk} cannot be resumed now: its conversation is busy.")
    return run


def _find(run_id: str | UUID | None) -> AgentRun | None:
    return _whole().filter(pk=run_id).first() if run_id is not None else None


def _get(run_id: UUID) -> AgentRun:
    return _whole().get(pk=run_id)


def _whole() -> RunScope:
    return runs.rows().select_related("session", "owner").filter(is_inline=True)


def _make(
    run_id: Any, user: Any, conversation_id: str | None, first: Mapping[str, Any]
) -> AgentRun:
    run = AgentRun(
        owner=user,
        agent_key=AGENT_KEY,
        is_inline=True,
        session=_session(user, conversation_id) if conversation_id else None,
        input_payload=to_jsonable(list(first["input_messages"]), "input_messages"),
        context=to_jsonable(dict(first["params"] or {}), "params"),
        metadata=to_jsonable(dict(first["metadata"] or {}), "metadata"),
        **({"pk": run_id} if run_id is not None else {}),
    )
    run.save(using=database(), force_insert=True)
    return run


def _session(user: Any, key: str) -> AgentSession:
    session, _ = AgentSession.objects.using(database()).get_or_create(
        tenant="",
        principal=principal_of(user),
        session_key=key or uuid4().hex,
        defaults={"owner": user, "agent_key": AGENT_KEY},
    )
    return session


def _reopen(run: AgentRun) -> None:
    """Bring a run that ended badly, or whose process died, back in line."""
    if run.status == AgentRun.Status.RUNNING:
        lifecycle.reclaim(run, "fail", Q(attempt=run.attempt, lease_ends_at__lt=Now()))
    lifecycle.retry(run)


async def load(run: AgentRun) -> Journal:
    """Return the journal of a run that was claimed."""
    return await threads.call(journals.load, run)


class Opened(Protocol):
    """What is held here: a run's context."""

    run: AgentRun
    journal: Journal
    result: Any

    @property
    def input_messages(self) -> list[Any]:
        """What the run was given."""
        ...


@asynccontextmanager
async def holding(context: Opened) -> AsyncIterator[None]:
    """Keep a run while its host performs it, and end it as the block ends."""
    run = context.run
    with heartbeat.keeping(run) as held:
        try:
            yield
            output = to_jsonable(context.result, "result")
        except StepCancelledError:
            await threads.call(lifecycle.stop, run)
            raise
        except asyncio.CancelledError:
            if not held.is_lost:
                await asyncio.shield(threads.call(lifecycle.stop, run))
                raise
            raise StepCancelledError from None
        except Exception as error:
            failure = Failure(verdict_on(error).code, error)
            await threads.call(lifecycle.fail, run, failure, context.journal.take_deferred())
            raise
        items = context.input_messages
        await threads.call(lifecycle.complete, run, output, items, context.journal.usage())
