"""A mode of the tests: each attempt stops after each result that it records, and is replayed.

    AGENTIC_TEST_REPLAY=1 scripts/test -m "not browser and not slow"

When an attempt that has recorded something is about to make its next call, its objects are thrown
away, and it is executed again from the journal, under the same lease. A test that passes without
this mode must pass with it, unless it counts calls that are not recorded
(``@pytest.mark.not_replayed``).

The mode uses the hooks of ``Journal`` and wraps ``executor.run_attempt``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self, cast
from unittest.mock import patch

from agentic_django.engine import journal
from agentic_django.engine.attempt import Attempt
from agentic_django.engine.journal import Journal
from agentic_django.engine.journal_entries import short_key
from agentic_django.models import StepCheckpoint
from agentic_django.openai_agents.call_scope import current_call
from agentic_django.worker import executor

__all__ = ["Replay", "ReplayingJournal", "Replays", "replaying"]


class Replay(BaseException):
    """The attempt is executed again from its journal."""


class Replays:
    """Counts how often attempts were executed again."""

    def __init__(self) -> None:
        self.count = 0


class ReplayingJournal(Journal):
    """Ends an attempt that has recorded something, unless another of its calls is being made.

    A step, or an agent that is a tool, is being made while it makes calls of its own.
    """

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.new_results = 0
        self.calls: set[str] = set()

    @classmethod
    def load(cls, attempt: Attempt) -> Self:
        """Return the journal with all rows, though it is the first attempt.

        A host's own code cannot be executed again, so an inline run gets a plain journal.
        """
        return cast("Self", Journal.load(attempt)) if attempt.run.is_inline else cls.read(attempt)

    def before_call(self, key: str) -> None:
        """End the attempt if this call is not part of another one."""
        outer = current_call()
        is_outermost = outer is None or (outer.key == key and key.count("/") == 1)
        if self.new_results and not self.calls and is_outermost:
            raise self.must_end(Replay())
        self.calls.add(short_key(key))

    def after_record(self, row: StepCheckpoint) -> None:
        """Note that a call has ended."""
        if not row.is_intent:
            self.new_results += 1
            self.calls.discard(row.key)


@contextmanager
def replaying() -> Iterator[Replays]:
    """Replay all attempts of this process."""
    replays, run_attempt = Replays(), executor.run_attempt

    async def run_replayed(attempt: Attempt) -> None:
        while True:
            try:
                return await run_attempt(attempt)
            except Replay:
                replays.count += 1

    with (
        patch.object(journal, "journal_class", ReplayingJournal),
        patch.object(executor, "run_attempt", run_replayed),
    ):
        yield replays
