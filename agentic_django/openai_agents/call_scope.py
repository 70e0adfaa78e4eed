"""Where a call of the SDK stands within a run: what it is recorded under."""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, cast

from agents.run_state import RunState

from agentic_django.engine.journal import Journal
from agentic_django.exceptions import RunSuspended

__all__ = [
    "CallScope",
    "CurrentCall",
    "current_call",
    "current_scope",
    "current_step",
    "enter_scope",
    "named_caller",
    "outer_call",
]


@dataclass(slots=True)
class CallScope:
    """One run of the SDK within a run of ours: a part of its journal.

    Keys must come out the same when an attempt is repeated. Responses are counted; tool calls
    go by the id that the model gave them, for parallel ones end in any order.

    A host's own code (``is_by_hand``) may leave out what it finds done, so there the count is
    of the same question.
    """

    journal: Journal
    path: str = ""
    agent: str = ""
    arrived: bool = False
    responses: int = 0
    children: Counter[str] = field(default_factory=Counter)
    is_by_hand: bool = False
    asked: dict[str, None] = field(default_factory=dict)
    latest: dict[str, CallScope] = field(default_factory=dict)
    resumed: CallScope | None = None
    """The scope that the next run of an agent goes on in, behind a decision."""
    named: set[str] = field(default_factory=set)
    under_way: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def is_nested(self) -> bool:
        """Whether it is of an agent that another agent or its guardrail called."""
        return self.path.count("/") > 1

    def begin_turn(self, agent: str) -> None:
        """Note which agent has the next turn; a hand-off makes it another one."""
        self.arrived = self.arrived or agent != self.agent or not self.responses
        self.agent = agent

    def child(self, agent: str, given: Any = None) -> CallScope:
        """Return the scope of an agent that the current tool, a guardrail or a host's code runs."""
        if self.resumed is not None:
            scope, self.resumed = self.resumed, None
            return scope
        name = self._child_name(agent)
        if isinstance(given, RunState):  # A person has decided: it goes on where it stood.
            return self.latest[name]
        numbered = self._numbered(f"{name}.{digest(given)}" if self.is_by_hand else name)
        self.latest[name] = CallScope(self.journal, numbered, agent)
        return self.latest[name]

    def called(self, agent: str) -> CallScope:
        """Return the scope of an agent that the current tool has just run."""
        return self.latest[self._child_name(agent)]

    def _child_name(self, agent: str) -> str:
        short = agent.replace("/", "-")[:60]  # A slash says how deep a scope is.
        return f"{self.path}/{_call_id.get().replace('/', '-')}.{short}"

    def model_key(self) -> str:
        """Return the key of the next response; a call that failed did not take it."""
        return f"{self.path}:model:{self.responses + 1}"

    def ask(self, question: str) -> str:
        """Return the key of the response to a question, and take it."""
        if not self.is_by_hand:
            return self.model_key()
        keys = (f"{self.path}:model:{question[:16]}#{n}" for n in count(1))
        key = next(key for key in keys if key not in self.asked)
        self.asked[key] = None
        return key

    def give_back(self, key: str) -> None:
        """Leave a key to the next call with the same question, for this one failed."""
        self.asked.pop(key, None)

    def call_id(self, tool: str, arguments: str) -> str:
        """Return an id for a tool call to which no model gave one."""
        return self._numbered(f"{tool}.{digest(arguments)}")

    def take_name(self, key: str) -> bool:
        """Whether this is the first sub-step of that key here; two would be taken for one."""
        is_first = key not in self.named
        self.named.add(key)
        return is_first

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Note that the present task works on a part of what this scope is of."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        is_new = task not in self.under_way
        self.under_way.add(task)
        try:
            yield
        finally:
            if is_new:
                self.under_way.discard(task)

    async def end(self, error: BaseException) -> None:
        """End the tasks that still work on a part of what has failed, and wait until they have.

        If it is to be parked they are let come to their ends, and may ask something too.
        """
        tasks = self.under_way - {asyncio.current_task()}
        if not isinstance(error, RunSuspended):
            for task in tasks:
                task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    def _numbered(self, name: str) -> str:
        self.children[name] += 1
        return f"{name}#{self.children[name]}"

    def tool_key(self, call_id: str) -> str:
        """Return the key of a tool call."""
        return f"{self.path}:tool:{call_id}"


def digest(given: Any) -> str:
    """Return a short hash of what an agent, or a tool, is given."""
    text = json.dumps(given, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class CurrentCall:
    """The tool call, or the step, that is being made now."""

    run_id: str
    key: str
    call_id: str

    @property
    def idempotency_key(self) -> str:
        """The same text each time this very call is made; hand it to what must not be doubled."""
        return f"{self.run_id}:{self.key}"


_scope: contextvars.ContextVar[CallScope | None] = contextvars.ContextVar(
    "agentic_scope", default=None
)
_call_id: contextvars.ContextVar[str] = contextvars.ContextVar("agentic_call_id", default="-")
_step: contextvars.ContextVar[CurrentCall | None] = contextvars.ContextVar(
    "agentic_step", default=None
)


def current_scope() -> CallScope | None:
    """Return the scope of the code that asks; None outside of a run."""
    return _scope.get()


def current_step() -> CurrentCall:
    """Return the tool call or step that is being made; raises LookupError outside of those."""
    step = _step.get()
    if step is None:
        raise LookupError("current_step() is for tools and steps, while a run calls them.")
    return step


def outer_call() -> CurrentCall | None:
    """Return the tool call or step that is being made, or None."""
    return _step.get()


@contextmanager
def enter_scope(scope: CallScope) -> Iterator[None]:
    """Make a scope the current one."""
    token = _scope.set(scope)
    try:
        yield
    finally:
        _scope.reset(token)


@contextmanager
def named_caller(name: str) -> Iterator[None]:
    """Name what calls agents within this block: they are told apart by it."""
    token = _call_id.set(name)
    try:
        yield
    finally:
        _call_id.reset(token)


@contextmanager
def current_call(step: CurrentCall) -> Iterator[None]:
    """Make a tool call the current one."""
    tokens = _step.set(step), _call_id.set(step.call_id)
    try:
        yield
    finally:
        _step.reset(tokens[0])
        _call_id.reset(tokens[1])
