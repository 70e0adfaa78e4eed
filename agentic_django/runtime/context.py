"""What drives a run, and all that it may touch."""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Protocol, runtime_checkable
from uuid import UUID

import agents
from agents.models.interface import Model
from pydantic import BaseModel, ValidationError

from agentic_django.concurrency import event_loop
from agentic_django.engine import events, fenced_writes
from agentic_django.engine.events import Event, EventType
from agentic_django.engine.journal import CallResult, Journal, load_journal
from agentic_django.exceptions import BadSetting, Declined
from agentic_django.models import AgentRun, AgentSession, StepCheckpoint, ToolApproval
from agentic_django.openai_agents import providers, runner
from agentic_django.openai_agents.call_scope import (
    CallScope,
    CurrentCall,
    current_call,
    current_scope,
    current_step,
    digest,
    enter_call,
    enter_scope,
)
from agentic_django.openai_agents.tool_marks import asks, at_most_once, editable
from agentic_django.runtime import inline, model_calls
from agentic_django.runtime import messages as generation
from agentic_django.runtime.messages import Message
from agentic_django.runtime.model_calls import Answer
from agentic_django.runtime.tools import Tool, ToolRegistry
from agentic_django.serialization import is_storable, to_jsonable
from agentic_django.sessions import RunHistory

__all__ = [
    "AgentRuntime",
    "Answer",
    "Message",
    "RunContext",
    "RunResult",
    "Runtime",
    "Tool",
    "ToolRegistry",
    "asks",
    "at_most_once",
    "current_step",
    "editable",
]


@dataclass(frozen=True, slots=True)
class RunResult:
    """What a run came to.

    ``final_output`` is anything that JSON can hold; ``final_messages``, in the chat format or
    as the SDK's items, join the conversation behind the run's input. If they repeat that, what
    stands behind it counts; without them, an output that is text is the agent's message.
    """

    final_output: Any = None
    final_messages: Sequence[Any] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        """Raise BadInput for messages that cannot be read."""
        generation.to_input_items(self.final_messages)


class RunContext:
    """One attempt of a run, as a runtime sees it."""

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.run: AgentRun = journal.run
        self.history = RunHistory(journal.attempt)
        self.state: dict[str, Any] = copy.deepcopy(journal.saved_state() or {})
        """A dict of your own; ``checkpoint()`` keeps it."""
        self.result: Any = None
        """The output of the run. Code in a ``RunContext.open`` block sets it, or a RunResult."""

    @classmethod
    @asynccontextmanager
    async def open(
        cls,
        run_id: str | UUID | None = None,
        *,
        user: Any = None,
        conversation_id: str | None = None,
        input_messages: Sequence[Any] = (),
        params: dict[str, Any] | None = None,
        metadata: dict[str, Any] | None = None,
    ) -> AsyncIterator[RunContext]:
        """Make a run, or resume the one of this id, and perform it in this block.

        For code that is already running somewhere: the run has a lease, a journal and events
        like any other, but no queue and no sweep ever starts it. It completes with the block,
        with ``result`` as its output; an exception fails it, and the same ``run_id`` resumes
        it then. Raises Conflict if the run to be resumed is held elsewhere or has completed,
        or if its conversation is busy, and StepCancelledError if the run was cancelled, or
        taken over, meanwhile. Synchronous steps and tools run on the host's own thread.
        """
        given = input_messages if isinstance(input_messages, str) else list(input_messages)
        first = {"params": params, "metadata": metadata, "input_messages": given}
        attempt = await event_loop.run_sync(
            inline.claim_or_create, run_id, user, conversation_id, first
        )
        context = cls(await event_loop.run_sync(load_journal, attempt))
        async with inline.execute(context):
            async with context.recording():
                yield context
            result = context.result
            outcome = result if isinstance(result, RunResult) else RunResult(result)
            await context.leave(outcome)
            context.result = outcome.final_output

    @asynccontextmanager
    async def recording(self) -> AsyncIterator[None]:
        """Record the calls that the SDK makes within this block; if it fails, end its sub-steps."""
        runner.install_runner()
        scope = CallScope(self.journal, is_host_code=True)
        try:
            with enter_scope(scope):
                yield
        except BaseException as error:
            await scope.end_tasks(error)
            raise

    async def leave(self, result: RunResult) -> None:
        """Put the input and what was said behind it into the conversation.

        If ``history`` was the session of an SDK run, both are there already.
        """
        given = generation.run_input_items(self.input_messages)
        said = _behind(given, generation.to_input_items(result.final_messages, system=True))
        if not self.history.added:
            if not said and isinstance(result.final_output, str):
                said = [{"role": "assistant", "content": result.final_output}]
            said = [*given, *said]
        await self.history.add_items(said)

    # Who and what

    @property
    def run_id(self) -> str:
        """The run's id as text."""
        return str(self.run.pk)

    @property
    def user(self) -> Any:
        """Who the run belongs to, or None."""
        return self.run.owner

    @property
    def session(self) -> AgentSession | None:
        """The run's conversation, or None."""
        return self.run.session

    @property
    def conversation_id(self) -> str | None:
        """The key of the run's conversation, or None."""
        return self.run.session.session_key if self.run.session else None

    @property
    def input_messages(self) -> list[Any]:
        """What the run was given, as messages."""
        return given_messages(self.run.input_payload)

    @property
    def params(self) -> dict[str, Any]:
        """The run's ``context``, as its submitter gave it."""
        params: dict[str, Any] = self.run.context
        return params

    @property
    def metadata(self) -> dict[str, Any]:
        """The run's metadata."""
        metadata: dict[str, Any] = self.run.metadata
        return metadata

    def cancelled(self) -> bool:
        """Whether this attempt has lost its run: it was cancelled, or taken over."""
        return self.journal.attempt.has_lost_run

    # Telling

    async def emit(
        self, event_type: str, payload: dict[str, Any], visibility: str | None = None
    ) -> None:
        """Write an event of the run; raises StaleAttempt if this attempt lost the run.

        ``visibility`` is user, debug or internal; by default that of the type, and internal
        for types of your own.
        """
        await self.write([events.new_event(event_type, visibility, **payload)])

    async def emit_user_message(self, text: str) -> None:
        """Show a text to the person while the run goes on."""
        await self.emit(EventType.MESSAGE, {"text": text, "agent": self.run.agent_key})

    async def emit_error(self, error: BaseException | str) -> None:
        """Write down something that went wrong and does not end the run."""
        kind = "" if isinstance(error, str) else type(error).__name__
        await self.emit(EventType.ERROR, {"error": str(error), "type": kind})

    async def write(self, drafts: Sequence[Event], **changes: Any) -> None:
        """Write events and columns of the run in one transaction, if this attempt holds it."""
        if events.enabled(drafts) or changes:
            await event_loop.run_sync(
                fenced_writes.update_run, self.journal.attempt, drafts, **changes
            )

    # Keeping

    async def checkpoint(self, state: dict[str, Any] | None = None) -> None:
        """Keep a state, by default ``state``, for an attempt after this one."""
        await self.journal.save_state(to_jsonable(self.state if state is None else state, "state"))

    async def get_checkpoint(self) -> dict[str, Any] | None:
        """Return the state that was kept last, by this attempt or one before it; or None."""
        saved: dict[str, Any] | None = copy.deepcopy(self.journal.saved_state())
        return saved

    async def step(self, name: str, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Return what was recorded under a name, or call a function and record what it returns.

        Names ("embed:42") are unique within the step or tool call that this is called in, or
        else within the run. Several may be gathered; if what they are part of fails, those that
        have not ended are cancelled. A synchronous function runs on the run's thread. Raises
        BadSetting for a name that is used twice or cannot be one, and NotSerializable, with
        nothing recorded, for a result that is not JSON.
        """
        check_step_name(name)
        outer = current_call()
        short = name.replace("%", "%25").replace(":", "%3A").replace("/", "%2F")
        key = f"step:{outer.key}:{short}" if outer else f"step:{short}"
        scope = current_scope() or CallScope(self.journal)
        if not scope.claim_step_key(key):
            raise BadSetting(f"Two steps here are called {name!r}. Give each a name of its own.")
        row = self.journal.find(key)
        if row is not None:
            return copy.deepcopy(row.result)
        began = time.monotonic()
        with scope.track_task():
            async with self.inside(name, key):
                value = to_jsonable(await call_function(fn, *args, **kwargs), f"result of {name!r}")
            result = CallResult(
                key, StepCheckpoint.Kind.STEP, name, value, time.monotonic() - began
            )
            await self.journal.record(result)
        return copy.deepcopy(value)

    @asynccontextmanager
    async def inside(self, name: str, key: str) -> AsyncIterator[None]:
        """Keep what is called within a step apart from what other steps call.

        If the step fails, what it left under way is ended.
        """
        outer = current_scope()
        scope = CallScope(self.journal, f"{outer.path if outer else ''}//{key}", is_host_code=True)
        try:
            with enter_scope(scope), enter_call(CurrentCall(self.run_id, key, name)):
                yield
        except BaseException as error:
            await scope.end_tasks(error)
            raise

    # Asking

    async def ask(
        self,
        question: str,
        *,
        options: Sequence[str] = (),
        schema: type[BaseModel] | None = None,
        key: str = "",
    ) -> Any:
        """Ask a person, and return the answer; until there is one the run waits, and costs nothing.

        The answer is one of ``options``, or an instance of ``schema`` (a pydantic model with
        plain fields, shown as a form), or a text. The work is performed again from its start
        once the answer is there: put what must not be repeated into steps. The same question is
        asked once in one place (step or tool call); ``key`` tells such apart. Raises Declined
        if a person declines, or if nobody answers within AGENTIC_DJANGO_APPROVAL_TTL.
        """
        if options and schema is not None:
            raise TypeError("Give options or a schema, not both.")
        outer, shown = current_call(), question
        place = f"ask:{outer.key if outer else ''}:{key or digest([question, list(options)])}"
        for number in count(1):
            decided = self.journal.decided(f"{place}#{number}")
            if decided is None:
                columns = {"options": list(options), "schema": _form(options, schema)}
                raise self.journal.request(
                    f"{place}#{number}",
                    kind=ToolApproval.Kind.QUESTION,
                    agent=self.run.agent_key,
                    question=shown,
                    **columns,
                )
            try:
                return _answer(decided, schema)
            except ValidationError as error:  # What only the model itself can tell.
                shown = f"{question}\n\n{error.errors()[0]['msg']}"

    # Models and agents

    def model(self, name: str | Model | None = None) -> Model:
        """Return a model of the SDK's, journaled; by default AGENTIC_DJANGO_DEFAULT_MODEL."""
        return providers.get_model(name)

    async def generate(
        self,
        messages: Sequence[Any],
        *,
        tools: Any = (),
        model: str | Model | None = None,
        **options: Any,
    ) -> Answer:
        """Ask a model once, with messages in the chat format; the answer is recorded."""
        return await model_calls.generate(messages, tools=tools, using=model, **options)

    async def run_agent(self, agent: agents.Agent[Any], given: Any) -> Any:
        """Run an SDK agent on a text or items, and return its final output; it is journaled.

        Several may be gathered: if one has to wait for a person, the others come to their ends
        first, or to what they ask.
        """
        with (current_scope() or CallScope(self.journal)).track_task():
            return await runner.run_agent(agent, self.journal, given)


def _form(options: Sequence[str], schema: type[BaseModel] | None) -> dict[str, Any] | None:
    if options:
        return None
    return schema.model_json_schema() if schema else {"type": "string", "minLength": 1}


def _answer(decided: ToolApproval, schema: type[BaseModel] | None) -> Any:
    if decided.decision != ToolApproval.Decision.ANSWERED:
        expired = decided.decision == ToolApproval.Decision.EXPIRED
        raise Declined(reason=decided.reason, expired=expired)
    return schema.model_validate(decided.answer) if schema else decided.answer


def check_step_name(name: Any) -> None:
    """Raise BadSetting for what cannot be the name of a step: 1 to 255 characters of text."""
    if not isinstance(name, str) or not 0 < len(name) <= _LONGEST_NAME:
        raise BadSetting(
            f"A step's name is text of 1 to {_LONGEST_NAME} characters, not {name!r:.60}."
        )
    if not is_storable(name):
        raise BadSetting(f"The step's name {name!r} has a character that databases refuse.")


_LONGEST_NAME = 255


def given_messages(payload: Any) -> list[Any]:
    """Return a run's input as messages."""
    return [{"role": "user", "content": payload}] if isinstance(payload, str) else list(payload)


def _behind(given: list[Any], items: list[Any]) -> list[Any]:
    """Return what stands behind the last place at which items repeat what was given."""
    n = len(given)
    for start in range(len(items) - n, -1, -1):
        if n and items[start : start + n] == given:
            return items[start + n :]
    return items


async def call_function(fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
    """Call a host's function: an asynchronous one here, another on the run's thread."""
    if inspect.iscoroutinefunction(fn):
        return await fn(*args, **kwargs)
    value = await event_loop.run_host_code(fn, *args, **kwargs)
    return await value if inspect.isawaitable(value) else value


@runtime_checkable
class Runtime(Protocol):
    """What drives one kind of registered work; a factory may return one of a host's own."""

    async def perform(self, context: RunContext) -> RunResult:
        """Do the work of a run; raise what went wrong."""
        ...


class AgentRuntime:
    """A base class for work of your own: register the class, or a factory of instances."""

    key = ""
    """The agent's key, for your own use."""

    async def run(self, ctx: RunContext) -> RunResult:
        """Do the work; to be overridden."""
        raise NotImplementedError(f"{type(self).__name__} has no run() method.")
