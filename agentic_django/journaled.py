"""Models and tools that record what they return, and return what is recorded.

Hooks cannot replay a result and the SDK's run states are kept once a turn, so the journal sits
in the model and in the tools themselves. Outside of a run they do what they always did, and a
host's agents keep their shape.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, wraps
from types import MethodType, SimpleNamespace
from typing import Any, cast

import agents
from agents.agent_tool_state import (
    get_agent_tool_resume_state,
    get_agent_tool_state_scope,
    peek_agent_tool_run_result,
)
from agents.exceptions import ToolTimeoutError
from agents.handoffs import Handoff
from agents.items import ModelResponse
from agents.models.interface import Model, ModelProvider
from agents.tool import (
    CustomTool,
    FunctionTool,
    _get_function_tool_invoke_context,
    default_tool_timeout_error_message,
)
from agents.tool_context import ToolContext

from agentic_django import drafts, events, prices, threads, transcript
from agentic_django.events import EventType
from agentic_django.exceptions import BadSetting, UnresolvedIntent
from agentic_django.journal import Result, short
from agentic_django.models import StepCheckpoint, ToolApproval
from agentic_django.scope import CurrentStep, Scope, calling, current_scope, making
from agentic_django.serialization import dumps, to_jsonable

__all__ = [
    "JournaledProvider",
    "at_most_once",
    "editable",
    "instrumented",
    "journaled_model",
    "journaled_tool",
]

Kind = StepCheckpoint.Kind
Decision = ToolApproval.Decision
_TIMED_OUT = "timed out"
_AT_MOST_ONCE = "agentic_at_most_once"


def at_most_once[T](tool: T) -> T:
    """Mark a tool whose calls must not be repeated; returns the tool.

    That it is about to be called is recorded first. A run that is found with such a record but
    without a result does not call it again: whether it happened cannot be known.
    """
    made = getattr(tool, "function_tool", tool)  # Of a tool of ours, the SDK's.
    if getattr(made, "_is_agent_tool", False):
        raise BadSetting("An agent as a tool is run again; mark that agent's own tools instead.")
    if not isinstance(made, FunctionTool | CustomTool):
        raise BadSetting(
            f"{made!r} is no tool whose calls are recorded. Mark the tool that is made of a "
            "function: at_most_once(function_tool(fn)), at_most_once(Tool.from_function(fn))."
        )
    vars(journaled_tool(made).on_invoke_tool)[_AT_MOST_ONCE] = True  # What a copy keeps.
    return tool


def editable[T](tool: T) -> T:
    """Let a person change the arguments of a tool's calls before approving them; returns the tool.

    For function tools with ``needs_approval``; what was changed is checked against the tool's
    own schema.
    """
    if not isinstance(tool, FunctionTool) or getattr(tool, "_is_agent_tool", False):
        raise BadSetting("Only the arguments of a function tool can be edited.")
    vars(tool)["agentic_editable"] = True
    return tool


def instrumented(agent: agents.Agent[Any], seen: set[int] | None = None) -> agents.Agent[Any]:
    """Return an agent whose models and tools, and those of its hand-offs, are journaled.

    It is changed in place, once; the graph of hand-offs may have cycles.
    """
    seen = set() if seen is None else seen
    if id(agent) in seen:
        return agent
    seen.add(id(agent))
    if isinstance(agent.model, Model):
        agent.model = journaled_model(agent.model)
    tools = vars(agent).get("get_all_tools")
    if not isinstance(tools, _Tools) or tools.agent is not agent:
        vars(agent)["get_all_tools"] = _Tools(agent)
    _name_guardrails("input", agent.input_guardrails)
    _name_guardrails("output", agent.output_guardrails)
    for handoff in agent.handoffs:
        _follow(handoff, seen)
    return agent


def _name_guardrails(kind: str, guardrails: Iterable[Any]) -> None:
    """Keep apart what guardrails that run side by side have asked of the same agent."""
    for index, guardrail in enumerate(guardrails):
        if "agentic_named" not in vars(guardrail):
            vars(guardrail)["agentic_named"] = guardrail.guardrail_function
            name = f"{kind}{index}-{guardrail.get_name()}".replace("/", "-")[:60]
            guardrail.guardrail_function = _named(guardrail.guardrail_function, name)


def _named(function: Callable[..., Any], name: str) -> Callable[..., Awaitable[Any]]:
    @wraps(function)
    async def call(*args: Any, **kwargs: Any) -> Any:
        context = getattr(args[0], "context", None) if args else None
        with calling(f"{getattr(context, 'tool_call_id', '')}{name}"):
            verdict = function(*args, **kwargs)
            return await verdict if inspect.isawaitable(verdict) else verdict

    return call


class _Tools:
    """What is put in the place of an agent's ``get_all_tools``."""

    def __init__(self, agent: agents.Agent[Any]) -> None:
        self.agent = agent
        self.inner: Callable[..., Awaitable[list[Any]]] = agent.get_all_tools
        if isinstance(self.inner, _Tools):  # The agent is a copy of one that was instrumented.
            self.inner = self.inner.inner
        if inspect.ismethod(self.inner):
            self.inner = MethodType(self.inner.__func__, agent)

    async def __call__(self, run_context: Any) -> list[Any]:
        scope = current_scope()
        if scope is not None:
            scope.enter(self.agent.name)
        return [journaled_tool(tool) for tool in await self.inner(run_context)]


def _follow(handoff: Any, seen: set[int]) -> None:
    if isinstance(handoff, agents.Agent):
        instrumented(handoff, seen)
    elif isinstance(handoff, Handoff) and "agentic_followed" not in vars(handoff):
        vars(handoff)["agentic_followed"] = handoff.on_invoke_handoff
        handoff.on_invoke_handoff = _following(handoff.on_invoke_handoff)


def _following(invoke: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def on_invoke_handoff(context: Any, given: str) -> Any:
        return instrumented(await invoke(context, given))

    return on_invoke_handoff


class JournaledProvider(ModelProvider):
    """A host's provider, whose models are journaled."""

    def __init__(self, inner: ModelProvider) -> None:
        self.inner = inner

    def get_model(self, model_name: str | None) -> Model:
        """Return the inner provider's model, journaled."""
        return journaled_model(self.inner.get_model(model_name))


def journaled_model(model: Model) -> Model:
    """Return a model that records its responses, and replays those that are recorded."""
    return model if isinstance(model, JournaledModel) else JournaledModel(model)


class JournaledModel(Model):
    """A model around a host's."""

    def __init__(self, inner: Model) -> None:
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # Not set yet, while a copy is made.
            raise AttributeError(name)
        return getattr(self.inner, name)

    async def _cleanup_on_run_end(self, owner: object) -> None:
        await self.inner._cleanup_on_run_end(owner)

    async def close(self) -> None:
        """Close the inner model."""
        await self.inner.close()

    def get_retry_advice(self, request: Any) -> Any:
        """Ask the inner model."""
        return self.inner.get_retry_advice(request)

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        """Return the recorded response, or ask the inner model and record what it says."""
        call = ModelCall.of(args, kwargs, self.inner)
        if call is None:
            return await self.inner.get_response(*args, **kwargs)
        recorded = call.recorded()
        if recorded is not None:
            return recorded
        with call.being_made():
            response = await self.inner.get_response(*args, **kwargs)
            await call.record(response)
        return response

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Stream the recorded response as one event, or the inner model's.

        The latter is recorded before its last event is passed on.
        """
        call = ModelCall.of(args, kwargs, self.inner)
        recorded = call.recorded() if call else None
        if recorded is not None:
            yield transcript.replayed(recorded)
            return
        items: list[Any] = []
        event: Any
        with call.being_made() if call else nullcontext():
            async for event in self.inner.stream_response(*args, **kwargs):
                if event.type == "response.output_item.done":
                    items.append(event.item)
                elif call and event.type in _TEXTS:
                    call.draft.add(event.delta, event.output_index)
                if call and event.type == "response.completed":
                    await call.record(transcript.response_of(event, items))
                yield event


_TEXTS = ("response.output_text.delta", "response.refusal.delta")

_MODEL_ARGUMENTS = (
    "system_instructions",
    "input",
    "model_settings",
    "tools",
    "output_schema",
    "handoffs",
    "tracing",
)


class ModelCall:
    """One call of a model within a scope."""

    def __init__(self, scope: Scope, asked: dict[str, Any], model: Any = None) -> None:
        self.scope = scope
        self.model = model
        self.handoffs = asked["handoffs"]
        self.fingerprint = transcript.fingerprint(
            asked["system_instructions"], asked["input"], asked["tools"]
        )
        self.key = scope.ask(self.fingerprint)
        self.draft = drafts.Draft(scope.journal.run, short(self.key))
        self.draft.is_wanted = (
            not scope.is_nested
            and _is_text(asked.get("output_schema"))
            and events.are_messages_seen()
        )
        self.is_recorded = False
        self.began = time.monotonic()

    @classmethod
    def of(
        cls, args: tuple[Any, ...], kwargs: dict[str, Any], model: Any = None
    ) -> ModelCall | None:
        """Return the call with these arguments of ``Model.get_response``; None outside a run."""
        scope = current_scope()
        if scope is None:
            return None
        return cls(scope, {**dict(zip(_MODEL_ARGUMENTS, args, strict=False)), **kwargs}, model)

    @contextmanager
    def being_made(self) -> Iterator[None]:
        """Ask the inner model in this block; if that fails, the key is free again."""
        try:
            yield
        finally:
            self.draft.drop()
            if not self.is_recorded:
                self.scope.give_back(self.key)

    def recorded(self) -> ModelResponse | None:
        """Return the response if it is recorded; tells of it if the question has changed."""
        row = self.scope.journal.find(self.key)
        if row is None:
            return None
        self.scope.responses += 1
        self.scope.arrived = False
        if row.fingerprint != self.fingerprint:
            text = f"The input of {self.key} is not the one whose recorded answer is used."
            self.scope.journal.defer(events.draft(EventType.LOG, message=text, level="warning"))
        return transcript.load_response(row.result)

    async def record(self, response: ModelResponse) -> None:
        """Record the response and tell of it."""
        scope = self.scope
        if self.draft.has_begun:
            await threads.aside(self.draft.close)
        result = Result(
            key=self.key,
            kind=Kind.MODEL,
            name=scope.agent,
            value=transcript.dump_response(response),
            seconds=time.monotonic() - self.began,
            usage=transcript.usage_counts(response.usage) | prices.cost(self.model, response.usage),
            fingerprint=self.fingerprint,
            has_draft=self.draft.is_written,
        )
        told = transcript.response_drafts(
            response, scope.agent, nested=scope.is_nested, handoffs=self.handoffs
        )
        if scope.arrived and not scope.is_nested:
            told.insert(0, events.draft(EventType.AGENT_UPDATED, agent=scope.agent))
        await scope.journal.record(result, told)
        self.is_recorded = True
        scope.responses += 1
        scope.arrived = False


def _is_text(schema: Any) -> bool:
    """Whether a model's answer is for people; one that follows a schema is for programs."""
    return schema is None or schema.is_plain_text()


def journaled_tool(tool: Any) -> Any:
    """Return a function tool that records its results; it is changed in place, once."""
    if isinstance(tool, FunctionTool | CustomTool):
        invoker: Any = tool.on_invoke_tool
        _name_guardrails("before", getattr(tool, "tool_input_guardrails", None) or ())
        _name_guardrails("after", getattr(tool, "tool_output_guardrails", None) or ())
        if not getattr(invoker, "is_journaled", False):
            tool.on_invoke_tool = _journaled_invoker(tool, invoker)
    return tool


def _journaled_invoker(tool: Any, invoker: Any) -> Any:
    """Return what invokes a tool through the journal.

    The SDK reads more from an invoker of its own than that it can be called (how it coerces
    arguments before an approval, for one), so the new one keeps the type and the attributes.
    """
    if not hasattr(invoker, "__agents_bind_function_tool__"):
        return _journaled_function(tool, invoker)
    journaled = copy.copy(invoker)
    journaled.__class__ = _journaled_type(cast("Hashable", type(invoker)))
    return journaled


@cache
def _journaled_type(kind: Any) -> type:
    def call(self: Any, ctx: ToolContext[Any], arguments: str) -> Awaitable[Any]:
        def make(given: str) -> Awaitable[Any]:
            return cast("Awaitable[Any]", kind.__call__(self, ctx, given))

        return _invoke(self._function_tool, make, ctx, arguments)

    def bind(self: Any, tool: Any) -> Any:
        bound = kind.__agents_bind_function_tool__(self, tool)
        if bound is self:
            return bound
        journaled = _journaled_invoker(tool, bound)
        vars(journaled)[_AT_MOST_ONCE] = getattr(self, _AT_MOST_ONCE, False)
        return journaled

    members = {"is_journaled": True, "__call__": call, "__agents_bind_function_tool__": bind}
    return type(f"Journaled{kind.__name__}", (kind,), members)


def _journaled_function(tool: Any, invoker: Callable[..., Awaitable[Any]]) -> Any:
    def invoke(ctx: ToolContext[Any], arguments: Any) -> Awaitable[Any]:
        given: Any = ctx
        if isinstance(tool, FunctionTool):  # It may want less of the context than the SDK has.
            given = _get_function_tool_invoke_context(SimpleNamespace(on_invoke_tool=invoker), ctx)  # type: ignore[arg-type]
        return _invoke(tool, lambda text: invoker(given, text), ctx, arguments)

    vars(invoke).update(getattr(invoker, "__dict__", {}))
    invoke.is_journaled = True  # type: ignore[attr-defined]
    return invoke


type Call = Callable[[Any], Awaitable[Any]]
"""Makes a call of a tool with these arguments."""


def _invoke(tool: Any, call: Call, ctx: ToolContext[Any], arguments: Any) -> Awaitable[Any]:
    """Begin a call of a tool; not a coroutine itself, for the SDK's time-out begins now."""
    scope = current_scope()
    if scope is None:
        return call(arguments)
    return ToolCall(scope, tool, ctx, arguments, time.monotonic()).make(call)


@dataclass(slots=True)
class ToolCall:
    """One call of a tool within a scope."""

    scope: Scope
    tool: Any
    ctx: ToolContext[Any]
    arguments: Any
    began: float

    @property
    def key(self) -> str:
        """What the call is recorded under."""
        return self.scope.tool_key(self.ctx.tool_call_id)

    @property
    def is_by_hand(self) -> bool:
        """Whether a host's own loop makes the call, and gets what the tool returns as it is."""
        return getattr(self.ctx, "is_by_hand", False)

    @property
    def current(self) -> CurrentStep:
        """The call as the tool's own code sees it."""
        return CurrentStep(str(self.scope.journal.run.pk), self.key, self.ctx.tool_call_id)

    async def make(self, call: Call) -> Any:
        """Make the call, as the current one."""
        with making(self.current):
            if getattr(self.tool, "_is_agent_tool", False):
                return await self.run_agent(call)
            return await self.run(call)

    async def run(self, call: Call) -> Any:
        """Return the recorded result, or call the tool and record what it returns."""
        row = self.scope.journal.find(self.key)
        if row is not None and row.is_intent:
            row = await self.settle(row)
        if row is not None and not row.is_intent:
            return self.replay(row)
        decided = self.scope.journal.decided(self.key)
        if decided is not None and decided.decision != Decision.APPROVED:
            return self.replay(await self.record(decided.refusal, row))
        if decided is not None and decided.was_edited:
            self.arguments = self.ctx.tool_arguments = dumps(decided.answer)
        intent = row or await self.intend()
        try:
            value = await call(self.arguments)
        except asyncio.CancelledError:
            await self.record_time_out(intent)
            raise
        if self.is_by_hand:
            value = to_jsonable(value, f"result of {self.tool.name!r}")
        await self.record(value, intent)
        return value

    async def settle(self, intent: StepCheckpoint) -> StepCheckpoint:
        """Return what a person decided of a call that may have happened, or have one asked.

        A result, if it was marked as done; an intent, if the call is to be made again.
        """
        journal, key = self.scope.journal, f"{self.key}:again:{intent.attempt}"
        decided = journal.decided(key)
        if decided is None:
            raise journal.ask(
                key,
                kind=ToolApproval.Kind.INTENT,
                call_id=self.ctx.tool_call_id,
                tool=self.tool.name,
                agent=self.scope.agent,
                arguments=transcript.parsed(self.arguments),
            )
        if decided.decision == Decision.REPEAT:
            return await journal.begin_again(intent)
        if decided.decision == Decision.DONE:
            return await self.record(decided.answer, intent)
        raise journal.give_up(UnresolvedIntent(tool=self.tool.name))

    async def run_agent(self, call: Call) -> Any:
        """Run an agent that is a tool: its own calls are recorded, so it is run again."""
        value = await call(self.arguments)
        if self.hold():
            return value
        if self.scope.journal.find(self.key) is None:
            await self.record(value, None, kind=Kind.CHILD)
        return value

    def hold(self) -> bool:
        """Note under which keys calls of the agent wait for a person, if any do."""
        made = self.ctx.tool_call
        place = get_agent_tool_state_scope(self.ctx)
        result = peek_agent_tool_run_result(made, scope_id=place) if made else None
        if result is None or get_agent_tool_resume_state(result) is not None:
            return False
        nested = self.scope.called(self.tool._agent_instance.name)
        for item in result.interruptions:
            key = nested.tool_key(item.call_id or "")
            self.scope.journal.held.setdefault(id(item), (item, key))
        return bool(result.interruptions)

    def replay(self, row: StepCheckpoint) -> Any:
        """Return what was recorded."""
        if row.error == _TIMED_OUT:
            raise ToolTimeoutError(self.tool.name, self.tool.timeout_seconds or 0)
        return row.result

    async def intend(self) -> StepCheckpoint | None:
        """Record that a call that must not be repeated begins."""
        if not getattr(self.tool.on_invoke_tool, _AT_MOST_ONCE, False):
            return None
        return await self.scope.journal.begin(self.key, Kind.TOOL, self.tool.name)

    async def record(
        self,
        value: Any,
        intent: StepCheckpoint | None,
        *,
        error: str = "",
        kind: str = Kind.TOOL,
    ) -> StepCheckpoint:
        """Record a result and tell of it."""
        seconds = time.monotonic() - self.began
        kept = value if self.is_by_hand else transcript.tool_value(self.tool, value)
        told = events.draft(
            EventType.TOOL_OUTPUT,
            call_id=self.ctx.tool_call_id,
            tool=self.tool.name,
            output=kept,
            duration_seconds=round(seconds, 3),
        )
        result = Result(
            key=self.key, kind=kind, name=self.tool.name, value=kept, seconds=seconds, error=error
        )
        return await self.scope.journal.record(result, [told], intent)

    async def record_time_out(self, intent: StepCheckpoint | None) -> None:
        """Record that the SDK ended the call after the tool's own time-out, if it did."""
        limit = getattr(self.tool, "timeout_seconds", None)
        if limit is None or time.monotonic() - self.began < limit:
            return
        if self.tool.timeout_behavior == "raise_exception":
            await self.record(None, intent, error=_TIMED_OUT)
        else:
            await self.record(await self.time_out_text(limit), intent)

    async def time_out_text(self, limit: float) -> Any:
        """Return what the SDK tells the model of a time-out."""
        if self.tool.timeout_error_function is None:
            return default_tool_timeout_error_message(
                tool_name=self.tool.name, timeout_seconds=limit
            )
        text = self.tool.timeout_error_function(self.ctx, ToolTimeoutError(self.tool.name, limit))
        return await text if inspect.isawaitable(text) else text
