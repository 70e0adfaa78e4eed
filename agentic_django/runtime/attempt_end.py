"""Ends an attempt: the run is completed, suspended, cancelled, failed or requeued.

Worker processes and inline runs both end their attempts here. Their differences are parameters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from django.db import Error

from agentic_django.concurrency import event_loop
from agentic_django.concurrency.foreign_cancellation import foreign_cancellation_fails
from agentic_django.engine import lifecycle
from agentic_django.engine.journal import Journal
from agentic_django.engine.lifecycle import Completion, Failure
from agentic_django.exceptions import AgentChanged, RunSuspended, StepCancelledError
from agentic_django.openai_agents.error_classification import RetryDecision, decide_retry
from agentic_django.serialization import to_jsonable
from agentic_django.sessions import RunHistory

__all__ = ["AttemptContext", "end_attempt", "work_block"]


class AttemptContext(Protocol):
    """The attributes of a ``RunContext`` that the end of an attempt needs."""

    journal: Journal
    history: RunHistory
    result: Any


@contextmanager
def work_block(context: AttemptContext, result_name: str) -> Iterator[None]:
    """Surround the host code of an attempt, which sets ``context.result``.

    Raises the error that must end the attempt, even if the host code swallowed it. Raises
    AgentChanged if a decided tool call was not made. Raises WorkCancelled if the host code raised
    CancelledError itself. Raises NotSerializable if the result is not JSON; ``result_name`` names
    the result in that message.
    """
    with context.journal.enforced_end(), foreign_cancellation_fails():
        yield
    context.journal.check_used()
    context.result = to_jsonable(context.result, result_name)


async def end_attempt(
    context: AttemptContext,
    error: BaseException | None,
    *,
    run_verb: Callable[..., Awaitable[None]],
    decide: Callable[[BaseException], RetryDecision] = decide_retry,
    timed_out: bool = False,
) -> BaseException | None:
    """End an attempt according to the error that its work raised. None completes the run.

    ``run_verb`` calls a verb of ``lifecycle`` on a thread with a database connection. ``decide``
    chooses the code of a failure, and whether the run is requeued. ``timed_out`` is true if the
    error only means that the run has exceeded its time limit.

    Return the error that ended the attempt. If a completion cannot be written, the run fails.
    Raises StaleAttempt if the attempt has lost the run. Raises Django's ``Error`` if the database
    cannot be reached. Then the run belongs to the attempt until its lease expires, and is executed
    again.
    """
    journal, attempt = context.journal, context.journal.attempt
    if error is None:
        error = await _complete(context)
        if error is None:
            return None
    elif isinstance(error, RunSuspended):
        try:
            journal.check_used()
        except AgentChanged as changed:
            error = changed
    if isinstance(error, StepCancelledError | asyncio.CancelledError):
        await run_verb(lifecycle.cancel_attempt, attempt)
        return error
    deferred = journal.pop_deferred()
    if isinstance(error, RunSuspended):
        requests = list(journal.requests.values())
        await run_verb(lifecycle.suspend, attempt, requests, journal.usage(), deferred)
        return error
    decision = RetryDecision("timed_out") if timed_out else decide(error)
    failure = Failure(decision.code, None if timed_out else error)
    await run_verb(journal.refuse_responses, error)
    if decision.retry:
        await run_verb(lifecycle.retry_later, attempt, failure, decision.after, deferred)
    else:
        await run_verb(lifecycle.fail, attempt, failure, deferred)
    return error


async def _complete(context: AttemptContext) -> Exception | None:
    """Complete the run, or return the error if its output cannot be stored."""
    completion = Completion(
        context.journal.attempt,
        context.result,
        context.history.added,
        context.journal.usage(),
        context.journal.pop_deferred(),
    )
    try:
        await event_loop.write_batched(lifecycle.complete, completion, joined=True)
    except Error:
        raise
    except Exception as error:  # noqa: BLE001 - another attempt could not store it either
        return error
    return None
