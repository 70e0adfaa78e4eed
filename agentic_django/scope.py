"""Where a call of the SDK stands within a run: what it is recorded under."""

from __future__ import annotations

import contextvars
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from agentic_django.journal import Journal

__all__ = ["CurrentStep", "Scope", "current_scope", "current_step", "making", "within"]


@dataclass(slots=True)
class Scope:
    """One run of the SDK within a run of ours: a part of its journal.

    Keys must come out the same when an attempt is repeated. Responses are counted; tool calls
    go by the id that the model gave them, for parallel ones end in any order.
    """

    journal: Journal
    path: str = ""
    agent: str = ""
    arrived: bool = False
    responses: int = 0
    children: Counter[str] = field(default_factory=Counter)

    @property
    def is_nested(self) -> bool:
        """Whether it is of an agent that another agent or its guardrail called."""
        return self.path.count("/") > 1

    def enter(self, agent: str) -> None:
        """Note which agent has the next turn; a hand-off makes it another one."""
        self.arrived = self.arrived or agent != self.agent or not self.responses
        self.agent = agent

    def child(self, agent: str) -> Scope:
        """Return the scope of an agent that the current tool, or a guardrail, runs."""
        short = agent.replace("/", "-")[:60]  # A slash says how deep a scope is.
        name = f"{self.path}/{_call_id.get()}.{short}"
        self.children[name] += 1
        return Scope(self.journal, f"{name}#{self.children[name]}", agent)

    def model_key(self) -> str:
        """Return the key of the next response; a call that failed did not take it."""
        return f"{self.path}:model:{self.responses + 1}"

    def tool_key(self, call_id: str) -> str:
        """Return the key of a tool call."""
        return f"{self.path}:tool:{call_id}"


@dataclass(frozen=True, slots=True)
class CurrentStep:
    """The tool call that is being made now."""

    run_id: str
    key: str
    call_id: str

    @property
    def idempotency_key(self) -> str:
        """The same text each time this very call is made; hand it to what must not be doubled."""
        return f"{self.run_id}:{self.key}"


_scope: contextvars.ContextVar[Scope | None] = contextvars.ContextVar("agentic_scope", default=None)
_call_id: contextvars.ContextVar[str] = contextvars.ContextVar("agentic_call_id", default="-")
_step: contextvars.ContextVar[CurrentStep | None] = contextvars.ContextVar(
    "agentic_step", default=None
)


def current_scope() -> Scope | None:
    """Return the scope of the code that asks; None outside of a run."""
    return _scope.get()


def current_step() -> CurrentStep:
    """Return the tool call that is being made; raises LookupError outside of a run's tools."""
    step = _step.get()
    if step is None:
        raise LookupError("current_step() is for tools, while a run calls them.")
    return step


@contextmanager
def within(scope: Scope) -> Iterator[None]:
    """Make a scope the current one."""
    token = _scope.set(scope)
    try:
        yield
    finally:
        _scope.reset(token)


@contextmanager
def making(step: CurrentStep) -> Iterator[None]:
    """Make a tool call the current one."""
    tokens = _step.set(step), _call_id.set(step.call_id)
    try:
        yield
    finally:
        _step.reset(tokens[0])
        _call_id.reset(tokens[1])
