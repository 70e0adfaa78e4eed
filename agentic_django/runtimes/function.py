"""Drives a host's own code: an async function, or an ``AgentRuntime``."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from agentic_django.runtime import RunContext, RunResult

__all__ = ["Function"]


class Function:
    """The runtime for ``async def run(ctx)``, which returns a RunResult or a plain output."""

    def __init__(self, run: Callable[[RunContext], Awaitable[Any]]) -> None:
        self.run = run

    async def perform(self, context: RunContext) -> RunResult:
        """Call the function; what it adds to the conversation stands behind the input."""
        try:
            async with context.recording():
                returned = await self.run(context)
        finally:
            context.journal.check()
        result = returned if isinstance(returned, RunResult) else RunResult(returned)
        await context.leave(result)
        return result
