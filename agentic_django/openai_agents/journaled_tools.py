"""Records the result of each tool call once, and returns the recorded result in later attempts.

The journal wraps the function with which the SDK invokes a tool. For a call ``c1`` of ``pay`` that
the first response of the agent "triage" requests, the wrapper does this, and returns from the first
step that has a result:

    pay(amount=7), id c1
     │
     ├─ find recorded   a result under "/-.triage#1:tool:1:c1": return it
     │                  an intent without a result: a person decides whether to call again
     ├─ decided         a person rejected the call: record the rejection, return it
     │                  a person edited the call: use the edited arguments
     ├─ intend          at_most_once only: record that the call is about to be made
     ├─ call            the tool's own code, with current_step() set
     └─ record          the result and its event, in one transaction; return it
"""

from __future__ import annotations

import asyncio
import inspect
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from agents.agent_tool_state import (
    get_agent_tool_resume_state,
    get_agent_tool_state_scope,
    peek_agent_tool_run_result,
)
from agents.exceptions import ToolTimeoutError
from agents.tool import CustomTool, FunctionTool, default_tool_timeout_error_message
from agents.tool_context import ToolContext
from django.db import InterfaceError, OperationalError

from agentic_django.concurrency.foreign_cancellation import foreign_cancellation_fails
from agentic_django.engine import events
from agentic_django.engine.events import EventType
from agentic_django.engine.journal_entries import CallResult
from agentic_django.exceptions import AgentChanged, UnresolvedIntent, WorkCancelled
from agentic_django.models import StepCheckpoint, ToolApproval
from agentic_django.openai_agents import conversion, sdk_internals
from agentic_django.openai_agents.call_scope import (
    CallScope,
    CurrentCall,
    current_call,
    current_scope,
    enter_call,
)
from agentic_django.openai_agents.error_classification import is_database_away
from agentic_django.openai_agents.guardrails import name_guardrails
from agentic_django.openai_agents.host_callbacks import move_tool_callbacks
from agentic_django.openai_agents.sdk_internals import Call, DelegatingInvoker
from agentic_django.serialization import dumps, to_jsonable

__all__ = ["AT_MOST_ONCE", "JournaledToolCall", "ManualToolContext", "journaled_tool"]

AT_MOST_ONCE = "agentic_at_most_once"
"""The attribute of an invoker that marks a tool whose calls must not be repeated."""

Kind = StepCheckpoint.Kind
Decision = ToolApproval.Decision

_TIMED_OUT = "timed out"


class ManualToolContext(ToolContext[Any]):
    """The context of a tool call that a host's own loop makes."""


def journaled_tool(tool: Any) -> Any:
    """Return a tool whose results are recorded, if it is executed in this process.

    The tool is changed in place, once. A copy would not work: the SDK compares tools by identity
    when it continues a run after an approval.
    """
    move_tool_callbacks(tool)
    if isinstance(tool, FunctionTool | CustomTool):
        name_guardrails("before", getattr(tool, "tool_input_guardrails", None) or ())
        name_guardrails("after", getattr(tool, "tool_output_guardrails", None) or ())
        invoker: Any = tool.on_invoke_tool
        if not getattr(invoker, "is_journaled", False):
            if sdk_internals.is_sdk_invoker(invoker):
                invoker = DelegatingInvoker(invoker, _make_call)
            else:
                invoker = _journaled_function(tool, invoker)
            invoker.is_journaled = True
            tool.on_invoke_tool = invoker
    return tool


def _journaled_function(tool: Any, invoker: Callable[..., Awaitable[Any]]) -> Any:
    def invoke(ctx: ToolContext[Any], arguments: Any) -> Awaitable[Any]:
        is_function = isinstance(tool, FunctionTool)
        context = sdk_internals.narrow_context(invoker, ctx) if is_function else ctx
        return _make_call(tool, partial(invoker, context), ctx, arguments)

    vars(invoke).update(getattr(invoker, "__dict__", {}))
    return invoke


def _make_call(tool: Any, call: Call, ctx: ToolContext[Any], arguments: Any) -> Awaitable[Any]:
    """Make a tool call through the journal, or directly outside a run.

    This is not a coroutine function, so that the tool's timeout starts now, as in the SDK.
    """
    if isinstance(ctx, ManualToolContext):
        call = partial(_call_with_known_arguments, tool, call)
    scope = current_scope()
    if scope is None:
        return call(arguments)
    return JournaledToolCall(scope, tool, ctx, arguments, time.monotonic()).execute(call)


async def _call_with_known_arguments(tool: FunctionTool, call: Call, arguments: Any) -> Any:
    """Make a call of a host's own loop. Return an error for the model if it has other arguments.

    The SDK drops arguments that the tool does not have, and calls the tool without them.
    """
    schema = tool.params_json_schema
    given = conversion.parsed_arguments(arguments)
    if isinstance(given, dict) and schema.get("additionalProperties") is False:
        known = schema.get("properties", {})
        if unknown := sorted(given.keys() - known.keys()):
            names = ", ".join(known) or "none"
            return f"Error: {tool.name} has no argument {unknown[0]!r}. Its arguments: {names}."
    return await call(arguments)


@dataclass(slots=True)
class JournaledToolCall:
    """One tool call within a run. ``started_at`` is a reading of the monotonic clock."""

    scope: CallScope
    tool: Any
    ctx: ToolContext[Any]
    arguments: Any
    started_at: float
    call_id: str = field(init=False)
    """The id of the call. No other call of its scope has it."""
    key: str = field(init=False)
    """The key under which the call is recorded."""
    fingerprint: str = field(init=False)
    """A hash of the tool's name and the arguments."""

    def __post_init__(self) -> None:
        self.fingerprint = conversion.call_fingerprint(self.tool.name, self.arguments)
        self.call_id = self.ctx.tool_call_id
        self.key = self.scope.tool_key(self.call_id)
        if self._is_made_by_host():
            self.call_id, self.key = self.scope.claim_tool_call(self.call_id, self.fingerprint)

    def _is_made_by_host(self) -> bool:
        """Return whether no response of this scope requested the call: the host's code makes it.

        A tool may call another tool with the context that it was given itself.
        """
        outer = current_call()
        is_within_itself = outer is not None and outer.key == self.key
        is_manual = isinstance(self.ctx, ManualToolContext)
        return self.scope.is_host_code or is_manual or is_within_itself

    async def execute(self, call: Call) -> Any:
        """Return the result of the call, with the call as the current one."""
        run_id = str(self.scope.journal.run.pk)
        try:
            with (
                enter_call(CurrentCall(run_id, self.key, self.call_id)),
                sdk_internals.raising_fatal_errors(is_database_away),
            ):
                if sdk_internals.is_agent_tool(self.tool):
                    return await self._run_agent_tool(call)
                return await self._run_tool(call)
        except (OperationalError, InterfaceError) as error:
            if is_database_away(error):  # The model cannot mend it. The attempt is retried.
                self.scope.journal.must_end(error)
            raise
        finally:
            if self.scope.journal.recorded(self.key) is None:
                self.scope.release_key(self.key)

    def _find(self) -> StepCheckpoint | None:
        """Return the row of this call. Raises AgentChanged if it is the row of another call."""
        row = self.scope.journal.find(self.key)
        if row is not None and row.fingerprint not in ("", self.fingerprint):
            raise self.scope.journal.must_end(
                AgentChanged(
                    f"The call {self.call_id!r} of {self.tool.name!r} was recorded as a call of "
                    f"{row.name!r}, or with other arguments. Start the run again."
                )
            )
        return row

    async def _run_tool(self, call: Call) -> Any:
        recorded = self._find()
        if recorded is not None and recorded.is_intent:
            recorded = await self._resolve_intent(recorded)
        if recorded is not None and not recorded.is_intent:
            return self._replay(recorded)
        decided = self.scope.journal.decided(self.key)
        if decided is not None and decided.decision != Decision.APPROVED:
            return self._replay(await self._record(decided.rejection_message, recorded))
        if decided is not None and decided.was_edited:
            self.arguments = self.ctx.tool_arguments = dumps(decided.answer)
        intent = recorded
        if intent is None and getattr(self.tool.on_invoke_tool, AT_MOST_ONCE, False):
            intent = await self.scope.journal.record_intent(
                self.key, Kind.TOOL, self.tool.name, self.fingerprint
            )
        try:
            value = await self._value_of(call)
        except asyncio.CancelledError:
            await self._record_timeout(intent)
            raise
        if isinstance(self.ctx, ManualToolContext):
            value = to_jsonable(value, f"result of {self.tool.name!r}")
        await self._record(value, intent)
        return value

    async def _value_of(self, call: Call) -> Any:
        """Make the call. If its own code raised CancelledError, return the message for the model.

        The SDK handles other errors within ``call``, but a CancelledError only after this method.
        Then the message would not be recorded.
        """
        try:
            with foreign_cancellation_fails():
                return await call(self.arguments)
        except WorkCancelled as error:
            text = await sdk_internals.tool_error_text(self.tool, self.ctx, error)
            if text is None:
                raise
            return text

    def _replay(self, recorded: StepCheckpoint) -> Any:
        if recorded.error == _TIMED_OUT:
            raise ToolTimeoutError(self.tool.name, self.tool.timeout_seconds or 0)
        return recorded.result

    async def _resolve_intent(self, intent: StepCheckpoint) -> StepCheckpoint:
        """Apply a person's decision about a call that has only a recorded intent.

        Return a result if the person marked the call as done, or an intent to repeat the call.
        Raises RunSuspended if nobody has decided yet. Raises UnresolvedIntent if the person decided
        that the run fails.
        """
        journal, key = self.scope.journal, f"{self.key}:again:{intent.attempt}"
        decided = journal.decided(key)
        if decided is None:
            raise journal.request(
                key,
                kind=ToolApproval.Kind.INTENT,
                call_id=self.call_id,
                tool=self.tool.name,
                agent=self.scope.agent,
                arguments=conversion.parsed_arguments(self.arguments),
            )
        if decided.decision == Decision.REPEAT:
            return await journal.record_repeat(intent)
        if decided.decision == Decision.DONE:
            return await self._record(decided.answer, intent)
        raise journal.must_end(UnresolvedIntent(tool=self.tool.name))

    async def _run_agent_tool(self, call: Call) -> Any:
        """Run an agent that is a tool. It always runs, because its own calls are replayed."""
        value = await call(self.arguments)
        if not self._note_nested_approvals() and self._find() is None:
            await self._record(value, None, kind=Kind.CHILD)
        return value

    def _note_nested_approvals(self) -> bool:
        """Note the keys of the agent's calls that wait for approval. Return whether any waits."""
        tool_call = self.ctx.tool_call
        if tool_call is None:
            return False
        state_scope = get_agent_tool_state_scope(self.ctx)
        result = peek_agent_tool_run_result(tool_call, scope_id=state_scope)
        if result is None or get_agent_tool_resume_state(result) is not None:
            return False
        nested = self.scope.latest_child(sdk_internals.agent_behind_tool(self.tool).name)
        for item in result.interruptions:
            key = nested.tool_key(item.call_id or "")
            self.scope.journal.nested_keys.setdefault(id(item), (item, key))
        return bool(result.interruptions)

    async def _record_timeout(self, intent: StepCheckpoint | None) -> None:
        """If the SDK cancelled the call after the tool's own timeout, record that."""
        limit = getattr(self.tool, "timeout_seconds", None)
        if limit is None or time.monotonic() - self.started_at < limit:
            return
        if self.tool.timeout_behavior == "raise_exception":
            await self._record(None, intent, error=_TIMED_OUT)
            return
        text: Any
        if self.tool.timeout_error_function is None:
            text = default_tool_timeout_error_message(
                tool_name=self.tool.name, timeout_seconds=limit
            )
        else:
            error = ToolTimeoutError(self.tool.name, limit)
            text = self.tool.timeout_error_function(self.ctx, error)
            text = await text if inspect.isawaitable(text) else text
        await self._record(text, intent)

    async def _record(
        self,
        value: Any,
        intent: StepCheckpoint | None,
        *,
        error: str = "",
        kind: str = Kind.TOOL,
    ) -> StepCheckpoint:
        """Record a result with its event. It replaces the intent, if one is given."""
        is_manual = isinstance(self.ctx, ManualToolContext)
        stored = value if is_manual else conversion.storable_tool_value(self.tool, value)
        seconds = time.monotonic() - self.started_at
        output = events.new_event(
            EventType.TOOL_OUTPUT,
            call_id=self.call_id,
            tool=self.tool.name,
            output=stored,
            duration_seconds=round(seconds, 3),
        )
        result = CallResult(
            key=self.key,
            kind=kind,
            name=self.tool.name,
            value=stored,
            seconds=seconds,
            fingerprint=self.fingerprint,
            error=error,
        )
        return await self.scope.journal.record(result, [output], intent)
