"""Tools that record their results; those whose calls must not be repeated, or may be edited."""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from agents.agent_tool_state import (
    get_agent_tool_resume_state,
    get_agent_tool_state_scope,
    peek_agent_tool_run_result,
)
from agents.exceptions import ToolTimeoutError
from agents.tool import (
    CustomTool,
    FunctionTool,
    default_tool_timeout_error_message,
)
from agents.tool_context import ToolContext

from agentic_django.engine import events
from agentic_django.engine.events import EventType
from agentic_django.engine.journal import CallResult
from agentic_django.exceptions import BadSetting, UnresolvedIntent
from agentic_django.models import StepCheckpoint, ToolApproval
from agentic_django.openai_agents import conversion, sdk_internals
from agentic_django.openai_agents.call_scope import (
    CallScope,
    CurrentCall,
    current_call,
    current_scope,
)
from agentic_django.openai_agents.guardrails import name_guardrails
from agentic_django.openai_agents.sdk_internals import Call, DelegatingInvoker, is_agent_tool
from agentic_django.serialization import dumps, to_jsonable

__all__ = [
    "JournaledToolCall",
    "approval_wording",
    "asks",
    "at_most_once",
    "editable",
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
    if is_agent_tool(made):
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
    if not isinstance(tool, FunctionTool) or is_agent_tool(tool):
        raise BadSetting("Only the arguments of a function tool can be edited.")
    vars(tool)["agentic_editable"] = True
    return tool


def asks[T](question: str, *, action: str = "") -> Callable[[T], T]:
    """Word what a person is asked before a call of a tool; returns what marks the tool.

    ``action`` is what the button says. Both may name arguments in braces:
    ``asks("Refund {amount} EUR?", action="Refund {amount}")``. Where a call lacks such an
    argument, a question of the app's own stands in.
    """

    def mark(tool: T) -> T:
        if not isinstance(tool, FunctionTool):
            raise BadSetting("Only the calls of a function tool are asked about in words.")
        vars(tool)["agentic_asks"] = (question, action)
        return tool

    return mark


def approval_wording(tool: Any, arguments: Any) -> dict[str, str]:
    """Return the question about a call, and what its button says, as the host words them."""
    question, action = getattr(tool, "agentic_asks", ("", ""))
    try:
        given = arguments if isinstance(arguments, dict) else {}
        texts = question.format_map(given), action.format_map(given)
    except (LookupError, ValueError, TypeError, AttributeError):  # What the model did not give.
        texts = "", ""
    return {"question": texts[0], "action": texts[1]}


def journaled_tool(tool: Any) -> Any:
    """Return a function tool that records its results; it is changed in place, once."""
    if isinstance(tool, FunctionTool | CustomTool):
        invoker: Any = tool.on_invoke_tool
        name_guardrails("before", getattr(tool, "tool_input_guardrails", None) or ())
        name_guardrails("after", getattr(tool, "tool_output_guardrails", None) or ())
        if not getattr(invoker, "is_journaled", False):
            tool.on_invoke_tool = _journaled_invoker(tool, invoker)
    return tool


def _journaled_invoker(tool: Any, invoker: Any) -> Any:
    if sdk_internals.is_sdk_invoker(invoker):
        journaled: Any = DelegatingInvoker(invoker, _invoke)
    else:
        journaled = _journaled_function(tool, invoker)
    journaled.is_journaled = True
    return journaled


def _journaled_function(tool: Any, invoker: Callable[..., Awaitable[Any]]) -> Any:
    def invoke(ctx: ToolContext[Any], arguments: Any) -> Awaitable[Any]:
        is_function = isinstance(tool, FunctionTool)
        context = sdk_internals.narrow_context(invoker, ctx) if is_function else ctx
        return _invoke(tool, partial(invoker, context), ctx, arguments)

    vars(invoke).update(getattr(invoker, "__dict__", {}))
    return invoke


def _invoke(tool: Any, call: Call, ctx: ToolContext[Any], arguments: Any) -> Awaitable[Any]:
    """Begin a call of a tool; not a coroutine itself, for the SDK's time-out begins now."""
    scope = current_scope()
    if scope is None:
        return call(arguments)
    return JournaledToolCall(scope, tool, ctx, arguments, time.monotonic()).make(call)


@dataclass(slots=True)
class JournaledToolCall:
    """One call of a tool within a scope."""

    scope: CallScope
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
    def current(self) -> CurrentCall:
        """The call as the tool's own code sees it."""
        return CurrentCall(str(self.scope.journal.run.pk), self.key, self.ctx.tool_call_id)

    async def make(self, call: Call) -> Any:
        """Make the call, as the current one."""
        with current_call(self.current):
            if is_agent_tool(self.tool):
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
            return self.replay(await self.record(decided.rejection_message, row))
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
                arguments=conversion.parsed_arguments(self.arguments),
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
        nested = self.scope.called(sdk_internals.agent_behind_tool(self.tool).name)
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
        kept = value if self.is_by_hand else conversion.storable_tool_value(self.tool, value)
        told = events.new_event(
            EventType.TOOL_OUTPUT,
            call_id=self.ctx.tool_call_id,
            tool=self.tool.name,
            output=kept,
            duration_seconds=round(seconds, 3),
        )
        result = CallResult(
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
