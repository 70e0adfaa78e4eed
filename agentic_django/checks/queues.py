"""Checks of the task backend and its queues."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, register
from django.tasks import task_backends

from agentic_django.checks.reporting import TAG, error, is_valid, warning
from agentic_django.conf import PREFIX, settings
from agentic_django.engine import queues

RQ_DEFAULT_SECONDS = 180
"""RQ's default timeout for jobs."""

PSYCOPG_POOL_SIZE = 4
"""The size of psycopg's pool by default."""

WORKER_THREADS = {"connections": 4, "threads": 16}
"""The defaults of the worker's options that set how many threads use the database."""

WORKER_CONNECTIONS = sum(WORKER_THREADS.values()) + 4
"""The connections of a worker process, with those of its background threads."""


@register(TAG)
def check_task_backend(**_: Any) -> Iterator[CheckMessage]:
    """E006: the task backend does not exist."""
    if not is_valid("TASK_BACKEND") or _has_backend():
        return
    alias = settings.TASK_BACKEND
    known = ", ".join(map(repr, task_backends.settings))
    hint = f"Set it to one of {known}, or add {alias!r} to TASKS."
    yield error(6, f"{PREFIX}TASK_BACKEND is {alias!r}, which is not in TASKS.", hint)


@register(TAG)
def check_queue_names(**_: Any) -> Iterator[CheckMessage]:
    """E007: agents are routed to a queue that the task backend does not have."""
    if not _has_backend() or not is_valid("QUEUES"):
        return
    known = queues.backend().queues
    for agent_key, queue in _queue_by_agent().items():
        if known and queue not in known:
            message = (
                f"{PREFIX}QUEUES sends {agent_key!r} to {queue!r}, which is not a queue in TASKS."
            )
            hint = (
                f"Add {queue!r} to TASKS[{settings.TASK_BACKEND!r}]['QUEUES'], "
                f"or choose one of: {', '.join(sorted(known))}."
            )
            yield error(7, message, hint)


@register(TAG)
def check_rq_timeouts(**_: Any) -> Iterator[CheckMessage]:
    """W004: RQ kills jobs before the time limit of a run."""
    valid = all(map(is_valid, ("QUEUES", "RUN_TIMEOUT_SECONDS")))
    if not valid or not _has_backend() or queues.delivery() is not queues.Delivery.RQ:
        return
    limit, options = settings.RUN_TIMEOUT_SECONDS, getattr(django_settings, "RQ_QUEUES", {})
    for queue in sorted(set(_queue_by_agent().values()) & options.keys()):
        seconds = _rq_seconds(options[queue].get("DEFAULT_TIMEOUT"))
        if 0 < seconds <= limit:
            message = (
                f"RQ kills jobs of the queue {queue!r} after {seconds:g} s, "
                f"but a run may take {limit:g} s."
            )
            hint = (
                f"Set RQ_QUEUES[{queue!r}]['DEFAULT_TIMEOUT'] to more than {limit:g} "
                f"(for example {limit + 60:g}), or lower {PREFIX}RUN_TIMEOUT_SECONDS."
            )
            yield warning(4, message, hint)


@register(TAG)
def check_connection_pool(**_: Any) -> Iterator[CheckMessage]:
    """W007: psycopg's pool has fewer connections than a process of the worker has threads."""
    if not is_valid("DATABASE") or not _has_backend():
        return
    alias = settings.DATABASE
    pool = django_settings.DATABASES.get(alias, {}).get("OPTIONS", {}).get("pool")
    if not pool or queues.delivery() not in (queues.Delivery.RQ, queues.Delivery.ROWS):
        return
    options = pool if isinstance(pool, dict) else {}
    size = options.get("max_size") or options.get("min_size", PSYCOPG_POOL_SIZE)
    if size < WORKER_CONNECTIONS:
        message = (
            f"The connection pool of the database {alias!r} has {size} connections, but a process "
            f"of agentic_django_worker may use {WORKER_CONNECTIONS} with its default options."
        )
        hint = (
            f"Set DATABASES[{alias!r}]['OPTIONS']['pool'] = {{'max_size': {WORKER_CONNECTIONS}}}. "
            "Or remove the pool from the worker's settings: its threads keep their connections. "
            "Otherwise tools wait for a connection, and their runs are retried."
        )
        yield warning(7, message, hint)


def _has_backend() -> bool:
    return is_valid("TASK_BACKEND") and settings.TASK_BACKEND in task_backends.settings


def _queue_by_agent() -> dict[str, str]:
    # Without an entry for "*", all other agents use the queue "default".
    return {"*": "default", **settings.QUEUES}


def _rq_seconds(timeout: Any) -> float:
    """Return the seconds after which RQ kills a job; -1 for never."""
    from rq.exceptions import TimeoutFormatError  # noqa: PLC0415 - installed only if RQ is used
    from rq.utils import parse_timeout  # noqa: PLC0415 - an extra

    try:
        return float(parse_timeout(timeout) or RQ_DEFAULT_SECONDS)
    except TimeoutFormatError:  # RQ itself reports it.
        return RQ_DEFAULT_SECONDS
