"""One attempt of a run: claim, keep, perform, finish."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from django.db import Error

from agentic_django import (
    failures,
    heartbeat,
    journal,
    lifecycle,
    recovery,
    runs,
    runtimes,
    threads,
)
from agentic_django.conf import settings
from agentic_django.exceptions import AgentChanged, RunMoved, RunParked, StepCancelledError
from agentic_django.failures import Verdict
from agentic_django.lifecycle import Failure, Outcome
from agentic_django.models import AgentRun
from agentic_django.runtime import RunContext
from agentic_django.serialization import to_jsonable
from agentic_django.signals import logger

__all__ = ["attempt", "carry", "execute"]


def execute(run_id: str) -> None:
    """Carry a run, or another that is due, through one attempt; on the calling thread.

    In a worker with many slots the calling thread only waits, and the worker itself sweeps.
    """
    if threads.is_shared():
        threads.run_shared(lambda: carry(run_id)).result()
    else:
        _execute_here(run_id)


async def carry(run_id: str) -> None:
    """Carry a run, or another that is due, through one attempt; on the running loop."""
    run = await threads.call(runs.claim, run_id)
    if run is not None:
        await attempt(run)


def _execute_here(run_id: str) -> None:
    try:
        run = runs.claim(run_id)
        if run is not None:
            threads.run_here(lambda: attempt(run))
    except Error:  # Whatever this thread does next needs a connection that works.
        threads.reconnect()
        raise
    recovery.sweep_after_attempt()


async def attempt(run: AgentRun) -> None:
    """Perform a claimed run to the end of its attempt, whichever that is."""
    with heartbeat.keeping(run) as held:
        try:
            await _perform(run)
        except RunMoved as moved:
            logger.info("%s", moved)
        except asyncio.CancelledError:
            if not held.is_lost:
                raise
            logger.info("Run %s was taken from attempt %s", run.pk, run.attempt)


async def _perform(run: AgentRun) -> None:
    context = RunContext(run, await threads.call(journal.load, run))
    limit = asyncio.timeout(settings.RUN_TIMEOUT_SECONDS - run.active_seconds)
    try:
        async with limit:
            runtime = await threads.call_host(runtimes.runtime_for, run)
            result = await runtime.perform(context)
            context.journal.check_used()
            output = to_jsonable(result.final_output, "final_output")
    except RunParked:
        await _park(context)
    except StepCancelledError:
        await _end(lifecycle.stop, run)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - where a run's failure ends up
        await _finish_badly(context, error, timed_out=limit.expired())
    else:
        await _complete(context, output)


async def _complete(context: RunContext, output: Any) -> None:
    added, usage = context.history.added, context.journal.usage()
    told = context.journal.take_deferred()
    outcome = Outcome(context.run, output, added, usage, told)
    try:
        await threads.together(lifecycle.complete, outcome, joined=True)
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
    verdict = Verdict("timed_out") if timed_out else failures.verdict_on(error)
    failure = Failure(verdict.code, None if timed_out else error)
    if verdict.retry:
        await _end(lifecycle.try_later, run, failure, verdict.after, told)
    else:
        await _end(lifecycle.fail, run, failure, told)


async def _end(verb: Callable[..., None], *args: Any) -> None:
    """Write how a run ends, though the connection or the run's thread may be the reason."""
    await threads.aside(threads.reconnect)
    await threads.aside(verb, *args)
