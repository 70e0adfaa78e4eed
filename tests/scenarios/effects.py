"""What agents did outside of the database: a file to which every call of a model or tool adds.

A line is written whole or not at all, so it outlives the process that is killed behind it.
"""

from __future__ import annotations

import contextvars
import json
import os
import time
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from agentic_django.engine import journal
from agentic_django.engine.journal import Journal
from agentic_django.openai_agents.call_scope import current_scope, current_step

__all__ = ["FILE", "Effect", "note_model_call", "note_tool_call", "read", "repeated"]

FILE = "AGENTIC_TEST_EFFECTS"


@dataclass(frozen=True)
class Effect:
    """One execution of a call."""

    run: str
    key: str
    attempt: int
    pid: int


_next_call: contextvars.ContextVar[str] = contextvars.ContextVar("next_call")


class NotingJournal(Journal):
    """A journal that notes the key of the call that the current task makes next."""

    def before_call(self, key: str) -> None:
        """Note the key."""
        _next_call.set(key)


journal.journal_class = NotingJournal  # In every process that executes agents of the scenarios.


def note_model_call() -> None:
    """Write that a model is called; nothing outside of a run."""
    scope = current_scope()
    if scope is not None:
        _note(str(scope.journal.run.pk), _next_call.get(), scope.journal.attempt.number)


def note_tool_call() -> None:
    """Write that a tool is called; nothing outside of a run."""
    scope = current_scope()
    if scope is None:
        return
    step = current_step()
    assert step.idempotency_key == f"{step.run_id}:{step.key}"
    _note(step.run_id, step.key, scope.journal.attempt.number)


def _note(run: str, key: str, attempt: int) -> None:
    line = json.dumps({"run": run, "key": key, "attempt": attempt, "pid": os.getpid()})
    file = os.open(os.environ[FILE], os.O_APPEND | os.O_CREAT | os.O_WRONLY)
    os.write(file, f"{line}\n".encode())
    os.close(file)


def read(run: str | None = None) -> list[Effect]:
    """Return the effects so far, in order; of one run, if it is given."""
    path = Path(os.environ[FILE])
    lines = path.read_text().splitlines() if path.exists() else []
    effects = [Effect(**json.loads(line)) for line in lines]
    return [effect for effect in effects if run in (None, effect.run)]


def wait_for(run: str, key_part: str, *, timeout: float = 20.0) -> Effect:
    """Return the first effect of a run whose key has this in it, once there is one."""
    end = time.monotonic() + timeout
    while time.monotonic() < end:
        for effect in read(run):
            if key_part in effect.key:
                return effect
        time.sleep(0.01)
    raise TimeoutError(f"{key_part} was not called: {read(run)}")


def repeated(effects: Iterable[Effect], recorded: dict[tuple[str, str], int]) -> list[str]:
    """Return the calls that were executed although they were recorded, or twice by one attempt.

    ``recorded`` says which attempt recorded a call (by run and key).
    """
    counts = Counter((effect.run, effect.key, effect.attempt) for effect in effects)
    problems = [f"{call} {count} times" for call, count in counts.items() if count > 1]
    for run, key, attempt in counts:
        by = recorded.get((run, key))
        if by is not None and attempt > by:
            problems.append(f"{key} by attempt {attempt}, recorded by {by}")
    return problems
