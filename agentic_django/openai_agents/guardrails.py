"""Guardrails that ask something, each under a name of its own."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from functools import wraps
from typing import Any

from agentic_django.openai_agents.call_scope import named_caller

__all__ = ["name_guardrails"]


def name_guardrails(kind: str, guardrails: Iterable[Any]) -> None:
    """Keep apart what guardrails that run side by side have asked of the same agent."""
    for index, guardrail in enumerate(guardrails):
        if "agentic_named" not in vars(guardrail):
            vars(guardrail)["agentic_named"] = guardrail.guardrail_function
            name = f"{kind}{index}-{guardrail.get_name()}".replace("/", "-")[:60]
            guardrail.guardrail_function = _named(guardrail.guardrail_function, name)


def _named(function: Callable[..., Any], name: str) -> Callable[..., Awaitable[Any]]:
    @wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        context = getattr(args[0], "context", None) if args else None
        with named_caller(f"{getattr(context, 'tool_call_id', '')}{name}"):
            verdict = function(*args, **kwargs)
            return await verdict if inspect.isawaitable(verdict) else verdict

    return call
