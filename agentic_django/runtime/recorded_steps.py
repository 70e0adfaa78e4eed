"""Calls a host's functions as named steps, and records the result of each once."""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from agentic_django.concurrency import event_loop
from agentic_django.engine.journal import Journal
from agentic_django.engine.journal_entries import CallResult
from agentic_django.exceptions import BadSetting
from agentic_django.models import StepCheckpoint
from agentic_django.openai_agents.call_scope import (
    CallScope,
    CurrentCall,
    current_call,
    current_scope,
    enter_call,
    enter_scope,
)
from agentic_django.serialization import is_storable, to_jsonable

__all__ = ["call_function", "check_step_name", "enter_step", "execute_step"]

_LONGEST_NAME = 255


async def execute_step(journal: Journal, name: str, call: Callable[[], Any]) -> Any:
    """Return the result recorded under a name, or call a function and record its result.

    The name must be unique within the surrounding step or tool call. Raises BadSetting if the name
    is invalid or is used twice. Raises NotSerializable if the result is not JSON.
    """
    check_step_name(name)
    outer = current_call()
    escaped = name.replace("%", "%25").replace(":", "%3A").replace("/", "%2F")
    key = f"step:{outer.key}:{escaped}" if outer else f"step:{escaped}"
    scope = current_scope() or CallScope(journal)
    if not scope.claim_step_key(key):
        raise BadSetting(f"Two steps here are called {name!r}. Give each a name of its own.")
    recorded = journal.find(key)
    if recorded is not None:
        return copy.deepcopy(recorded.result)
    started_at = time.monotonic()
    with scope.track_task():
        async with enter_step(journal, name, key):
            value = to_jsonable(await call_function(call), f"result of {name!r}")
        seconds = time.monotonic() - started_at
        await journal.record(CallResult(key, StepCheckpoint.Kind.STEP, name, value, seconds))
    return copy.deepcopy(value)


@asynccontextmanager
async def enter_step(journal: Journal, name: str, key: str) -> AsyncIterator[None]:
    """Record the calls made in this block as part of a step.

    If the block fails, its unfinished tasks are cancelled.
    """
    outer = current_scope()
    scope = CallScope(journal, f"{outer.path if outer else ''}//{key}", is_host_code=True)
    try:
        with enter_scope(scope), enter_call(CurrentCall(str(journal.run.pk), key, name)):
            yield
    except BaseException as error:
        await scope.end_tasks(error)
        raise


def check_step_name(name: Any) -> None:
    """Raise BadSetting if the name of a step is not a valid string of 1 to 255 characters."""
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
        raise BadSetting(
            f"A step's name is text of 1 to {_LONGEST_NAME} characters, not {name!r:.60}."
        )
    if not is_storable(name):
        raise BadSetting(f"The step's name {name!r} has a character that databases refuse.")


async def call_function(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a host's function. A synchronous one is called on the run's thread."""
    if inspect.iscoroutinefunction(fn):
        return await fn(*args, **kwargs)
    value = await event_loop.run_host_code(fn, *args, **kwargs)
    return await value if inspect.isawaitable(value) else value
