"""Names guardrails, so that agents run by concurrent guardrails have different keys.

A synchronous guardrail is called on the run's thread.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from functools import wraps
from typing import Any

from agentic_django.concurrency.foreign_cancellation import foreign_cancellation_fails
from agentic_django.openai_agents.call_scope import enter_caller
from agentic_django.openai_agents.host_callbacks import on_run_thread

__all__ = ["name_guardrails"]

_NAMED = "agentic_named"


def name_guardrails(kind: str, guardrails: Iterable[Any]) -> None:
    """Name guardrails by their kind, position and own name. Each is changed in place, once.

    The agents that a guardrail runs are then recorded under its name.
    """
    for index, guardrail in enumerate(guardrails):
        if not hasattr(guardrail.guardrail_function, _NAMED):
            name = f"{kind}{index}-{guardrail.get_name()}".replace("/", "-")[:60]
            guardrail.guardrail_function = _named(guardrail.guardrail_function, name)


def _named(function: Callable[..., Any], name: str) -> Callable[..., Awaitable[Any]]:
    moved = on_run_thread(function)

    @wraps(function)
    async def check(*args: Any, **kwargs: Any) -> Any:
        context = getattr(args[0], "context", None) if args else None
        caller = f"{getattr(context, 'tool_call_id', '')}{name}"
        # The SDK treats a cancelled guardrail as passed.
        with enter_caller(caller), foreign_cancellation_fails():
            output = moved(*args, **kwargs)
            return await output if inspect.isawaitable(output) else output

    setattr(check, _NAMED, True)
    return check
