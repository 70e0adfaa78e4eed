"""What drives a run, and all that it may touch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from agentic_django import events, runs, threads
from agentic_django.events import Event
from agentic_django.journal import Journal
from agentic_django.models import AgentRun
from agentic_django.sessions import RunHistory

__all__ = ["RunContext", "RunResult", "Runtime"]


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run came to."""

    final_output: Any = None


class RunContext:
    """One attempt of a run, as a runtime sees it."""

    def __init__(self, run: AgentRun, journal: Journal) -> None:
        self.run = run
        self.journal = journal
        self.history = RunHistory(run)

    @property
    def run_id(self) -> str:
        """The run's id as text."""
        return str(self.run.pk)

    @property
    def user(self) -> Any:
        """Who the run belongs to, or None."""
        return self.run.owner

    async def emit(
        self, event_type: str, payload: dict[str, Any], visibility: str | None = None
    ) -> None:
        """Write an event of the run; raises RunMoved if this attempt lost the run."""
        await self.write([events.draft(event_type, visibility, **payload)])

    async def write(self, drafts: Sequence[Event], **changes: Any) -> None:
        """Write events and columns of the run in one transaction, if this attempt holds it."""
        if events.wanted(drafts) or changes:
            await threads.call(runs.advance, self.run, drafts, **changes)


class Runtime(Protocol):
    """What drives one kind of registered work."""

    async def perform(self, context: RunContext) -> RunResult:
        """Do the work of a run; raise what went wrong."""
        ...
