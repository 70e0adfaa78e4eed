"""A mode of the tests: each attempt is given up after each thing it records, and replayed.

    AGENTIC_TEST_REPLAY=1 scripts/test -m "not browser and not slow"

What an attempt has recorded by the time it makes its next call is all that is left of it then:
its objects are thrown away, and it is performed again from the journal, under the same lease. A
test that passes without this must pass with it, unless it counts what is not recorded
(``@pytest.mark.not_replayed``).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from agentic_django.engine import journal
from agentic_django.engine.journal import Journal
from agentic_django.models import AgentRun, StepCheckpoint, ToolApproval
from agentic_django.openai_agents.call_scope import current_call
from agentic_django.steps import StepExecutor
from agentic_django.worker import executor

__all__ = ["Again", "Replays", "replaying"]


class Again(BaseException):
    """The attempt is performed again from what it has recorded."""


class Replays:
    """Counts how often attempts were performed again."""

    def __init__(self) -> None:
        self.count = 0

    def give_up(self, kept: Journal, key: str = "") -> None:
        """End an attempt that has recorded something, unless another of its calls is under way.

        What calls others, a step or an agent as a tool, is under way while those are made.
        """
        is_between = isinstance(kept, WatchedJournal) and kept.fresh and not kept.under_way
        step = current_call()
        is_outermost = step is None or (step.key == key and key.count("/") == 1)
        if is_between and is_outermost:
            raise kept.give_up(Again())


class WatchedJournal(Journal):
    """A journal that knows what was added to it, and which calls are being made."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.fresh = 0
        self.under_way: set[str] = set()

    async def _noted(self, written: Any) -> StepCheckpoint:
        row = await super()._noted(written)
        if not row.is_intent:
            self.fresh += 1
            self.under_way.discard(row.key)
        return row


_find, _start, _perform = Journal.find, StepExecutor._start, executor._perform


@contextmanager
def replaying() -> Iterator[Replays]:
    """Perform all attempts of this process in this way."""
    replays = Replays()

    def find(self: Any, key: str) -> StepCheckpoint | None:
        row = _find(self, key)
        if row is None and isinstance(self, WatchedJournal) and key != journal.STATE_KEY:
            replays.give_up(self, key)
            self.under_way.add(journal.short_key(key))
        return row

    async def start(self: StepExecutor, step: Any, attempt: int) -> None:
        if attempt == 1:
            replays.give_up(self.ctx.journal)
        await _start(self, step, attempt)

    async def perform(run: AgentRun) -> None:
        while True:
            try:
                return await _perform(run)
            except Again:
                replays.count += 1

    with (
        patch.object(Journal, "find", find),
        patch.object(StepExecutor, "_start", start),
        patch.object(executor, "_perform", perform),
        patch.object(journal, "load_journal", load),
    ):
        yield replays


def load(run: AgentRun) -> Journal:
    """Return a run's journal, read anew; what its host performs cannot be performed again."""
    kind = Journal if run.is_inline else WatchedJournal
    asked = ToolApproval.objects.filter(run=run, generation=run.generation)
    return kind(run, list(StepCheckpoint.objects.filter(run=run).order_by("id")), list(asked))
