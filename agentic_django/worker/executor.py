"""Executes attempts in a worker process: claim a run, keep its lease, execute it, write its end."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from django.db import Error

from agentic_django.concurrency import database_connections, event_loop
from agentic_django.conf import settings
from agentic_django.engine import claims, heartbeat, journal, recovery
from agentic_django.engine.attempt import Attempt
from agentic_django.exceptions import RunSuspended, StaleAttempt
from agentic_django.runtime import RunContext, attempt_end
from agentic_django.signals import logger
from agentic_django.worker import drivers

__all__ = ["execute", "execute_on_loop", "run_attempt"]


def execute(run_id: str) -> None:
    """Execute one attempt of a run, or of another due run of its queue, on the calling thread.

    In a worker with many slots the calling thread only waits, and the worker itself sweeps.
    """
    if event_loop.has_thread_pools():
        event_loop.start_on_loop(lambda: execute_on_loop(run_id)).result()
        return
    try:
        attempt = claims.claim_run(run_id)
        if attempt is not None:
            event_loop.run_on_loop(lambda: run_attempt(attempt))
    except Error:  # The thread's next work needs a connection that works.
        database_connections.close_broken_connections()
        raise
    recovery.sweep_after_attempt()


async def execute_on_loop(run_id: str) -> None:
    """Execute one attempt of a run, or of another due run of its queue, on the running loop."""
    attempt = await event_loop.run_sync(claims.claim_run, run_id)
    if attempt is not None:
        await run_attempt(attempt)


async def run_attempt(attempt: Attempt) -> None:
    """Execute a claimed run until its attempt ends, however it ends."""
    with heartbeat.keep_lease(attempt):
        try:
            context = RunContext(await event_loop.run_sync(journal.load_journal, attempt))
            await _execute(context)
        except StaleAttempt as moved:
            logger.info("%s", moved)
        except asyncio.CancelledError:
            if not attempt.has_lost_run:
                raise
            logger.info("Attempt %s has lost run %s", attempt.number, attempt.run.pk)


async def _execute(context: RunContext) -> None:
    run = context.run
    error: BaseException | None = None
    limit = asyncio.timeout(settings.RUN_TIMEOUT_SECONDS - run.active_seconds)
    try:
        async with limit:
            with attempt_end.work_block(context, "final_output"):
                driver = await event_loop.run_host_code(drivers.driver_for, run)
                context.result = (await driver.perform(context)).final_output
    except (Exception, SystemExit, RunSuspended) as raised:  # noqa: BLE001 - it ends the attempt
        error = raised
    await attempt_end.end_attempt(context, error, run_verb=_run_verb, timed_out=limit.expired())


async def _run_verb(verb: Callable[..., None], *args: Any) -> None:
    """Call a verb even if the run's connection or its thread is what failed."""
    await event_loop.run_sync_unqueued(database_connections.close_broken_connections)
    await event_loop.run_sync_unqueued(verb, *args)
