"""Executes one attempt of a run: claims the run, renews its lease, executes and ends it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from django.db import Error

from agentic_django.concurrency import database_connections, event_loop
from agentic_django.conf import settings
from agentic_django.engine import claims, heartbeat, journal, recovery
from agentic_django.engine.attempt import Attempt
from agentic_django.exceptions import RunSuspended, StaleAttempt, WorkCancelled
from agentic_django.runtime import RunContext, attempt_end
from agentic_django.signals import logger
from agentic_django.worker import drivers

__all__ = ["execute", "execute_on_loop", "run_attempt"]


def execute(run_id: str) -> None:
    """Execute one attempt of a run, or of another due run of its queue, on the calling thread.

    In a worker with many slots, the calling thread only waits until the attempt ends. Then the
    worker's monitor sweeps for orphaned runs.
    """
    if event_loop.has_thread_pools():
        event_loop.start_on_loop(lambda: execute_on_loop(run_id)).result()
        return
    try:
        attempt = claims.claim_run(run_id)
        if attempt is not None:
            event_loop.run_on_loop(lambda: run_attempt(attempt))
    except Error:  # The next run on this thread needs a working connection.
        database_connections.close_broken_connections()
        raise
    recovery.sweep_after_attempt()


async def execute_on_loop(run_id: str) -> None:
    """Execute one attempt of a run, or of another due run of its queue, on the running loop."""
    attempt = await event_loop.run_sync(claims.claim_run, run_id)
    if attempt is not None:
        await run_attempt(attempt)


async def run_attempt(attempt: Attempt) -> None:
    """Execute a claimed run, and write the end of its attempt.

    An attempt that has lost its run, to a cancellation or to another worker, ends without a write.
    """
    with heartbeat.keep_lease(attempt):
        try:
            context = RunContext(await event_loop.run_sync(journal.load_journal, attempt))
            await _execute(context)
        except StaleAttempt as error:
            logger.info("%s", error)
        except asyncio.CancelledError:
            if not attempt.has_lost_run:
                raise
            logger.info("Attempt %s has lost run %s", attempt.number, attempt.run.pk)


async def _execute(context: RunContext) -> None:
    run = context.run
    error: BaseException | None = None
    timeout = asyncio.timeout(settings.RUN_TIMEOUT_SECONDS - run.active_seconds)
    try:
        async with timeout:
            with attempt_end.work_block(context, "final_output"):
                driver = await event_loop.run_host_code(drivers.driver_for, run)
                context.result = (await driver.perform(context)).final_output
    except asyncio.CancelledError as cancelled:
        if context.journal.attempt.has_lost_run or event_loop.is_run_interrupted():
            raise
        task = cast("asyncio.Task[object]", asyncio.current_task())
        while task.cancelling():  # By host code. The task still has to write the end.
            task.uncancel()
        error = WorkCancelled()
        error.__cause__ = cancelled
    except (Exception, SystemExit, RunSuspended) as raised:  # noqa: BLE001 - any error of host code ends the attempt
        error = raised
    await attempt_end.end_attempt(context, error, run_verb=_run_verb, timed_out=timeout.expired())


async def _run_verb(verb: Callable[..., None], *args: Any) -> None:
    """Call a verb of ``lifecycle``, even if the run's connection is broken or its thread busy."""
    await event_loop.run_sync_unqueued(database_connections.close_broken_connections)
    await event_loop.run_sync_unqueued(verb, *args)
