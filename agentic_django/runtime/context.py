"""The context of a run for a host's code, and the interface of that code."""

from __future__ import annotations

import copy
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, Protocol, runtime_checkable
from uuid import UUID

import agents
from agents.models.interface import Model
from pydantic import BaseModel

from agentic_django.concurrency import event_loop
from agentic_django.engine import events, fenced_writes
from agentic_django.engine.events import Event, EventType
from agentic_django.engine.journal import Journal, load_journal
from agentic_django.exceptions import BadInput
from agentic_django.models import AgentRun, AgentSession
from agentic_django.openai_agents import mcp_servers, providers, runner
from agentic_django.openai_agents.call_scope import CallScope, current_scope, enter_scope
from agentic_django.runtime import inline, model_calls, questions, recorded_steps
from agentic_django.runtime.model_calls import Answer
from agentic_django.runtime.results import RunResult, items_after_input, messages_of_input
from agentic_django.serialization import to_jsonable
from agentic_django.sessions import RunHistory

__all__ = ["AgentRuntime", "RunContext", "Runtime"]


class RunContext:
    """One attempt of a run: its input, and the operations that a host's code may use.

    Methods that write raise StaleAttempt if the attempt has lost its run.
    """

    def __init__(self, journal: Journal) -> None:
        self.journal = journal
        self.run: AgentRun = journal.run
        self.history = RunHistory(journal.attempt)
        """The conversation, as a session of the SDK."""
        self.state: dict[str, Any] = copy.deepcopy(journal.saved_state() or {})
        """A dict for the host's code. ``checkpoint()`` saves it."""
        self.result: Any = None
        """The output of the run, or a RunResult. Code in a ``RunContext.open`` block sets it."""

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
        """Create a run, or resume the one with this id, and execute it in this block.

        Use it in code that is already running. The run has a lease, a journal and events like any
        other run, but it is never queued. It completes when the block ends, with ``result`` as its
        output. An exception fails the run. Open it again with the same ``run_id`` to resume it.
        Synchronous steps and tools run on the host's own thread.

        Raises Conflict if the run has completed, if another process executes it, or if its
        conversation has another unfinished run. Raises StepCancelledError if the run is cancelled,
        or claimed by another process, while the block runs.
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

    # The run and its input

    @property
    def run_id(self) -> str:
        """The run's id as a string."""
        return str(self.run.pk)

    @property
    def user(self) -> Any:
        """The owner of the run, or None."""
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
        """The run's input, as a list of messages."""
        return messages_of_input(self.run.input_payload)

    @property
    def params(self) -> dict[str, Any]:
        """The run's ``context``, as it was submitted."""
        params: dict[str, Any] = self.run.context
        return params

    @property
    def metadata(self) -> dict[str, Any]:
        """The run's metadata."""
        metadata: dict[str, Any] = self.run.metadata
        return metadata

    def cancelled(self) -> bool:
        """Return whether this attempt has lost its run to a cancellation or to another worker."""
        return self.journal.attempt.has_lost_run

    # Events

    async def emit(
        self, event_type: str, payload: dict[str, Any], visibility: str | None = None
    ) -> None:
        """Write an event of the run.

        ``visibility`` is user, debug or internal. None means the default of the type, which is
        internal for types of your own.
        """
        await self.write([events.new_event(event_type, visibility, **payload)])

    async def emit_user_message(self, text: str) -> None:
        """Show a message to the user while the run continues."""
        await self.emit(EventType.MESSAGE, {"text": text, "agent": self.run.agent_key})

    async def emit_error(
        self, error: BaseException | str, payload: dict[str, Any] | None = None
    ) -> None:
        """Write an event for an error that does not end the run.

        ``payload`` is added to the event. Raises BadInput if it has a field of the event itself.
        """
        kind = "" if isinstance(error, str) else type(error).__name__
        own = {"error": str(error), "type": kind}
        if taken := sorted(own.keys() & (payload or {}).keys()):
            raise BadInput(f"The payload of an error event cannot have {taken[0]!r}. Rename it.")
        await self.emit(EventType.ERROR, {**own, **(payload or {})})

    async def write(self, new_events: Sequence[Event], **columns: Any) -> None:
        """Write events and columns of the run in one transaction."""
        if events.enabled(new_events) or columns:
            await event_loop.run_sync(
                fenced_writes.update_run, self.journal.attempt, new_events, **columns
            )

    # State, steps and questions

    async def checkpoint(self, state: dict[str, Any] | None = None) -> None:
        """Save a state, by default ``self.state``. It replaces the last saved state."""
        await self.journal.save_state(to_jsonable(self.state if state is None else state, "state"))

    async def get_checkpoint(self) -> dict[str, Any] | None:
        """Return the state that this attempt or an earlier one saved last, or None."""
        state: dict[str, Any] | None = copy.deepcopy(self.journal.saved_state())
        return state

    async def step(self, name: str, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Any:
        """Return the result recorded under a name, or call a function and record its result.

        A name such as "embed:42" must be unique within the surrounding step or tool call, or within
        the run if there is none. Steps may run concurrently, for example in ``asyncio.gather``. If
        the surrounding code fails, unfinished steps are cancelled. A synchronous function runs on
        the run's thread.

        Raises BadSetting if the name is invalid or is used twice. Raises NotSerializable, and
        records nothing, if the result is not JSON.
        """
        return await recorded_steps.execute_step(self.journal, name, partial(fn, *args, **kwargs))

    async def ask(
        self,
        question: str,
        *,
        options: Sequence[str] = (),
        schema: type[BaseModel] | None = None,
        key: str = "",
    ) -> Any:
        """Ask a person a question, and return the answer.

        The run waits for it. The answer is one of ``options``, an instance of ``schema`` (a
        pydantic model with plain fields, shown as a form), or a string. After the answer, the code
        is executed again from its start. Put work that must not be repeated into steps. A question
        is asked once within a step or tool call; ``key`` distinguishes equal questions.

        Raises Declined if the person declines, or does not answer within
        AGENTIC_DJANGO_APPROVAL_TTL.
        """
        return questions.ask_person(self.journal, question, options=options, schema=schema, key=key)

    # Models and agents

    def model(self, name: str | Model | None = None) -> Model:
        """Return a model of the SDK whose responses are recorded.

        ``name`` is a name or a model object. None means ``AGENTIC_DJANGO_DEFAULT_MODEL``.
        """
        return providers.get_model(name)

    async def generate(
        self,
        messages: Sequence[Any],
        *,
        tools: Any = (),
        model: str | Model | None = None,
        **options: Any,
    ) -> Answer:
        """Call a model once with messages in the chat format, and record its answer.

        ``options`` are fields of the SDK's ``ModelSettings``. See ``model_calls.generate``.
        """
        return await model_calls.generate(messages, tools=tools, using=model, **options)

    async def run_agent(self, agent: agents.Agent[Any], given: Any) -> Any:
        """Run an SDK agent on a string or on items, and return its final output.

        All its calls are recorded. Agents may run concurrently, for example in ``asyncio.gather``.
        If one must wait for a person, the others first end or ask their own questions.
        """
        with (current_scope() or CallScope(self.journal)).track_task():
            return await runner.run_agent(agent, self.journal, given)

    # For objects that implement Runtime

    @asynccontextmanager
    async def recording(self) -> AsyncIterator[None]:
        """Record the model and tool calls made in this block.

        If the block fails, its unfinished tasks are cancelled.
        """
        runner.install_runner()
        scope = CallScope(self.journal, is_host_code=True)
        try:
            async with mcp_servers.servers_of_attempt():
                with enter_scope(scope):
                    yield
        except BaseException as error:
            await scope.end_tasks(error)
            raise

    async def leave(self, result: RunResult) -> None:
        """Add the run's input and the messages of its result to the conversation.

        If ``history`` was the session of an SDK run, its items are added already.
        """
        given, items = items_after_input(self.input_messages, result)
        if not self.history.added:
            if not items and isinstance(result.final_output, str):
                items = [{"role": "assistant", "content": result.final_output}]
            items = [*given, *items]
        await self.history.add_items(items)


@runtime_checkable
class Runtime(Protocol):
    """An object that executes one kind of run. A registered factory may return one."""

    async def perform(self, context: RunContext) -> RunResult:
        """Execute a run, and return its result. An exception fails the run."""
        ...


class AgentRuntime:
    """A base class for a host's own code. Register the class, or a factory of instances."""

    key = ""
    """The agent's key, for the host's own use."""

    async def run(self, ctx: RunContext) -> RunResult:
        """Execute a run, and return its result or a plain output. Override this method."""
        raise NotImplementedError(f"{type(self).__name__} has no run() method.")
