"""Assigns the key under which each call of a run is recorded, and tracks the current call.

A key must be the same in every attempt. So it consists of names that do not depend on the order in
which concurrent calls end:

    /-.triage#1:model:2                             the second response of the agent "triage"
    /-.triage#1:tool:2:c1                           the tool call "c1" of that response
    /-.triage#1/c1.search.5f1c…#1:model:1           a response of the agent that "c1" runs, with a
                                                    digest of the agent's input
"""

from __future__ import annotations

import asyncio
import contextvars
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import chain, count, islice
from typing import Any, cast

from agents.run_state import RunState

from agentic_django.engine.journal import Journal
from agentic_django.exceptions import RunSuspended
from agentic_django.openai_agents import sdk_internals

__all__ = [
    "CallScope",
    "CurrentCall",
    "current_call",
    "current_scope",
    "current_step",
    "digest",
    "enter_call",
    "enter_caller",
    "enter_scope",
]


@dataclass(slots=True)
class CallScope:
    """The part of a journal that belongs to one run of the SDK, or to a host's own code.

    Model responses are numbered. Tool calls are named by the id that the model gave them, because
    concurrent calls end in any order. A host's own code (``is_host_code``, or the code of a tool or
    guardrail) may skip recorded calls and make other calls concurrently. So its model calls and
    agents are named by a digest of their input, and equal ones are numbered.
    """

    journal: Journal
    path: str = ""
    agent: str = ""
    is_host_code: bool = False
    response_count: int = 0
    is_resumed: bool = False
    """Whether the SDK continues after a decision, and processes the latest response once more."""
    is_listing_tools: bool = False
    """Whether the SDK lists the tools of an agent, before a turn."""
    agent_has_changed: bool = False
    """Whether the current agent has no recorded response since its turn began."""
    children: dict[str, CallScope] = field(default_factory=dict)
    """The latest scope of each agent run from this one, by its name with and without its input."""
    resumed: CallScope | None = None
    """The scope in which the next run of an agent continues after a decision."""
    _name_counts: Counter[str] = field(default_factory=Counter)
    _claimed_keys: set[str] = field(default_factory=set)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)

    @property
    def is_nested(self) -> bool:
        """Whether the scope belongs to an agent that another agent or a guardrail runs."""
        return self.path.count("/") > 1

    def begin_turn(self, agent: str) -> None:
        """Note the agent of the next turn. A handoff changes it."""
        is_other = agent != self.agent
        self.agent_has_changed = self.agent_has_changed or is_other or not self.response_count
        self.agent = agent

    @contextmanager
    def listing_tools(self) -> Iterator[None]:
        """Note that the SDK lists the tools of an agent in this block."""
        outer, self.is_listing_tools = self.is_listing_tools, True
        try:
            yield
        finally:
            self.is_listing_tools = outer

    @property
    def processed_response(self) -> int:
        """The number of the response that the SDK processes next."""
        return self.response_count + (0 if self.is_resumed else 1)

    @property
    def turns_before_retry(self) -> int:
        """The number of usable responses that were recorded before a person's last retry."""
        number, last = 0, self.journal.retried_attempt
        while row := self.journal.recorded(self.model_key(number + 1)):
            if row.attempt > last or row.error:
                break
            number += 1
        return number

    def end_turn(self) -> None:
        """Count a response of the current agent."""
        self.response_count += 1
        self.agent_has_changed = False

    # The scopes of agents that are run from this one

    def child(self, agent: str, given: Any = None) -> CallScope:
        """Return the scope of an agent that a tool, a guardrail or a host's code runs now.

        ``given`` is the agent's input, or the SDK's state of a run that continues after a decision.
        """
        if self.resumed is not None:
            scope, self.resumed = self.resumed, None
            scope.is_resumed = True
            return scope
        name = self._child_name(agent)
        if isinstance(given, RunState):
            question = f"{name}.{digest(sdk_internals.original_input(given))}"
            scope = self.children.get(question, self.children[name])
            scope.is_resumed = True
            return scope
        # The run's own agent has one input. Other agents may run concurrently, in any order.
        question = name if self._is_root else f"{name}.{digest(given)}"
        scope = CallScope(self.journal, self._numbered(question), agent)
        self.children[name] = self.children[question] = scope
        return scope

    @property
    def _is_root(self) -> bool:
        return not self.path and not self.is_host_code

    def latest_child(self, agent: str) -> CallScope:
        """Return the scope of an agent that the current call has already run."""
        return self.children[self._child_name(agent)]

    def _child_name(self, agent: str) -> str:
        # Slashes separate levels, and is_nested counts them.
        short = agent.replace("/", "-")[:60]
        return f"{self.path}/{_caller.get().replace('/', '-')}.{short}"

    # Keys

    def model_key(self, number: int) -> str:
        """Return the key of a response of this scope's agent, by its number."""
        return f"{self.path}:model:{number}"

    def claim_question_key(self, fingerprint: str) -> str:
        """Return the key of a host code's model call, whose input has this fingerprint."""
        keys = (f"{self._caller_path}:model:{fingerprint[:16]}#{n}" for n in count(1))
        return next(key for key in keys if self._claim(key))

    def claim_step_key(self, key: str) -> bool:
        """Reserve a step's key. Return False if another step of this scope has already used it."""
        return self._claim(key)

    def tool_key(self, call_id: str, response: int | None = None) -> str:
        """Return the key of a tool call that a response requested, by default the latest one."""
        number = self.response_count if response is None else response
        return f"{self.path}:tool:{number}:{call_id}"

    def claim_tool_call(self, call_id: str, fingerprint: str) -> tuple[str, str]:
        """Return the id and the key of a tool call that a host's own code makes.

        The host may give several calls the same id. Then a call gets the recorded result of a call
        with the same tool and arguments. Calls with the same tool and arguments are numbered.
        """
        prefix = f"{self._caller_path}:tool:"
        ids = chain([call_id], (f"{call_id}#{n}" for n in count(2)))
        free = ""
        for new_id in islice(ids, self.journal.size + len(self._claimed_keys) + 1):
            key = prefix + new_id
            if key in self._claimed_keys:
                continue
            recorded = self.journal.recorded(key)
            if recorded is None:
                free = free or new_id
            elif recorded.fingerprint == fingerprint:
                free = new_id
                break
        self._claimed_keys.add(prefix + free)
        return free, prefix + free

    def release_key(self, key: str) -> None:
        """Release the key of a call that was not recorded, so that the next equal call gets it."""
        self._claimed_keys.discard(key)

    def new_call_id(self, tool: str, arguments: str) -> str:
        """Return an id for a tool call that a host's code makes without one."""
        name, prefix = f"{tool}.{digest(arguments)}", f"{self._caller_path}:tool:"
        return self._numbered(prefix + name).removeprefix(prefix)

    @property
    def _caller_path(self) -> str:
        """The path, including the current tool call, step or guardrail of this scope."""
        caller = _caller.get()
        return self.path if caller == "-" else f"{self.path}/{caller.replace('/', '-')}"

    def _claim(self, key: str) -> bool:
        is_new = key not in self._claimed_keys
        self._claimed_keys.add(key)
        return is_new

    def _numbered(self, name: str) -> str:
        self._name_counts[name] += 1
        return f"{name}#{self._name_counts[name]}"

    # Tasks that work within this scope

    @contextmanager
    def track_task(self) -> Iterator[None]:
        """Count the current task among those of this scope while the block runs."""
        task = cast("asyncio.Task[Any]", asyncio.current_task())
        is_new = task not in self._tasks
        self._tasks.add(task)
        try:
            yield
        finally:
            if is_new:
                self._tasks.discard(task)

    async def end_tasks(self, error: BaseException) -> None:
        """Cancel the other tasks of this scope after an error, and wait until they have ended.

        If the error suspends the run, they are not cancelled. Their results are recorded, and they
        may also ask a person.
        """
        tasks = self._tasks - {asyncio.current_task()}
        if not isinstance(error, RunSuspended):
            for task in tasks:
                task.cancel()
        if tasks:
            await asyncio.wait(tasks)


def digest(value: Any) -> str:
    """Return a short hash of the input of an agent or a tool."""
    text = json.dumps(value, sort_keys=True, default=repr)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


@dataclass(frozen=True, slots=True)
class CurrentCall:
    """The tool call or the step that is being executed."""

    run_id: str
    key: str
    call_id: str

    @property
    def idempotency_key(self) -> str:
        """A string that is the same each time this call is executed.

        Pass it to a service that must act on the call only once.
        """
        return f"{self.run_id}:{self.key}"


_scope: contextvars.ContextVar[CallScope | None] = contextvars.ContextVar(
    "agentic_scope", default=None
)
_call: contextvars.ContextVar[CurrentCall | None] = contextvars.ContextVar(
    "agentic_call", default=None
)
_caller: contextvars.ContextVar[str] = contextvars.ContextVar("agentic_caller", default="-")
"""The tool call, step or guardrail that runs agents. Their scopes' paths include it."""


def current_scope() -> CallScope | None:
    """Return the scope of the running code, or None outside a run."""
    return _scope.get()


def current_call() -> CurrentCall | None:
    """Return the tool call or step that is being executed, or None."""
    return _call.get()


def current_step() -> CurrentCall:
    """Return the tool call or step that is being executed. Raises LookupError if there is none."""
    call = _call.get()
    if call is None:
        raise LookupError("current_step() works only in tools and steps, while a run calls them.")
    return call


@contextmanager
def enter_scope(scope: CallScope) -> Iterator[None]:
    """Make a scope the current one in this block."""
    token = _scope.set(scope)
    try:
        yield
    finally:
        _scope.reset(token)


@contextmanager
def enter_call(call: CurrentCall) -> Iterator[None]:
    """Make a tool call or a step the current one in this block."""
    token = _call.set(call)
    try:
        with enter_caller(call.call_id):
            yield
    finally:
        _call.reset(token)


@contextmanager
def enter_caller(name: str) -> Iterator[None]:
    """Name the caller of agents in this block, to distinguish them from other callers' agents."""
    token = _caller.set(name)
    try:
        yield
    finally:
        _caller.reset(token)
