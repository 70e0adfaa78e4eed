"""One attempt of a run: claim, keep, perform, finish."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from django.db import Error

from agentic_django.concurrency import event_loop
from agentic_django.conf import settings
from agentic_django.engine import claims, heartbeat, journal, lifecycle, recovery
from agentic_django.engine.lifecycle import Completion, Failure
from agentic_django.exceptions import AgentChanged, RunSuspended, StaleAttempt, StepCancelledError
from agentic_django.models import AgentRun
from agentic_django.openai_agents import errors
from agentic_django.openai_agents.errors import RetryDecision
from agentic_django.runtime import RunContext
from agentic_django.serialization import to_jsonable
from agentic_django.signals import logger
from agentic_django.worker import drivers

__all__ = ["execute", "execute_on_loop", "run_attempt"]


def execute(run_id: str) -> None:
    """Carry a run, or another that is due, through one attempt; on the calling thread.

    In a worker with many slots the calling thread only waits, and the worker itself sweeps.
    """
    if event_loop.is_pooled():
        event_loop.start_on_loop(lambda: execute_on_loop(run_id)).result()
    else:
        _execute_here(run_id)


async def execute_on_loop(run_id: str) -> None:
    """Carry a run, or another that is due, through one attempt; on the running loop."""
    run = await event_loop.run_sync(claims.claim_run, run_id)
    if run is not None:
        await run_attempt(run)


def _execute_here(run_id: str) -> None:
    try:
        run = claims.claim_run(run_id)
        if run is not None:
            event_loop.run_on_loop(lambda: run_attempt(run))
    except Error:  # Whatever this thread does next needs a connection that works.
        event_loop.drop_broken_connections()
        raise
    recovery.sweep_after_attempt()


async def run_attempt(run: AgentRun) -> None:
    """Perform a claimed run to the end of its attempt, whichever that is."""
    with heartbeat.keep_lease(run) as held:
        try:
            await _perform(run)
        except StaleAttempt as moved:
            logger.info("%s", moved)
        except asyncio.CancelledError:
            if not held.is_lost:
                raise
            logger.info("Run %s was taken from attempt %s", run.pk, run.attempt)


async def _perform(run: AgentRun) -> None:
    context = RunContext(run, await event_loop.run_sync(journal.load_journal, run))
    limit = asyncio.timeout(settings.RUN_TIMEOUT_SECONDS - run.active_seconds)
    try:
        async with limit:
            runtime = await event_loop.run_host_code(drivers.driver_for, run)
            result = await runtime.perform(context)
            context.journal.check_used()
            output = to_jsonable(result.final_output, "final_output")
    except RunSuspended:
        await _park(context)
    except StepCancelledError:
        await _end(lifecycle.cancel_held, run)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - where a run's failure ends up
        await _finish_badly(context, error, timed_out=limit.expired())
    else:
        await _complete(context, output)


async def _complete(context: RunContext, output: Any) -> None:
    added, usage = context.history.added, context.journal.usage()
    told = context.journal.take_deferred()
    outcome = Completion(context.run, output, added, usage, told)
    try:
        await event_loop.write_batched(lifecycle.complete, outcome, joined=True)
    except Error:  # The work is done; another attempt says so when the database is back.
        raise
    except Exception as error:  # noqa: BLE001 - what cannot be kept would not be by another attempt
        await _finish_badly(context, error, timed_out=False)


async def _park(context: RunContext) -> None:
    journal = context.journal
    try:
        journal.check_used()
    except AgentChanged as error:
        await _finish_badly(context, error, timed_out=False)
        return
    asked = list(journal.asking.values())
    await _end(lifecycle.suspend, context.run, asked, journal.usage(), journal.take_deferred())


async def _finish_badly(context: RunContext, error: BaseException, *, timed_out: bool) -> None:
    run, told = context.run, context.journal.take_deferred()
    verdict = RetryDecision("timed_out") if timed_out else errors.decide_retry(error)
    failure = Failure(verdict.code, None if timed_out else error)
    if verdict.retry:
        await _end(lifecycle.retry_later, run, failure, verdict.after, told)
    else:
        await _end(lifecycle.fail, run, failure, told)


async def _end(verb: Callable[..., None], *args: Any) -> None:
    """Write how a run ends, though the connection or the run's thread may be the reason."""
    await event_loop.run_aside(event_loop.drop_broken_connections)
    await event_loop.run_aside(verb, *args)
