"""Runs agents through the SDK's ``Runner``, and opens a scope for each agent that is run.

The app itself calls ``run_agent``. ``JournalingRunner`` becomes the SDK's default runner, so that
agents run by a tool, a guardrail or a host's code are recorded too.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import fields, replace
from typing import Any

import agents
from agents.exceptions import ModelBehaviorError
from agents.items import ToolApprovalItem
from agents.memory import Session
from agents.models.interface import Model
from agents.models.multi_provider import MultiProvider
from agents.result import RunResultStreaming
from agents.run import AgentRunner, get_default_agent_runner, set_default_agent_runner
from agents.run_config import DEFAULT_MAX_TURNS
from agents.run_state import RunState
from agents.tool import FunctionTool

from agentic_django.concurrency import event_loop
from agentic_django.concurrency.foreign_cancellation import foreign_cancellation_fails
from agentic_django.conf import load, settings
from agentic_django.engine import events
from agentic_django.engine.events import EventType
from agentic_django.engine.journal import Journal
from agentic_django.engine.journal_entries import CallResult
from agentic_django.exceptions import AgentChanged
from agentic_django.models import AgentRun, StepCheckpoint, ToolApproval
from agentic_django.openai_agents import conversion, mcp_servers, providers
from agentic_django.openai_agents.agents import hook_agent_classes, prepare_agent
from agentic_django.openai_agents.call_scope import CallScope, current_scope, enter_scope
from agentic_django.openai_agents.guardrails import name_guardrails
from agentic_django.openai_agents.host_callbacks import on_run_thread, with_moved_callbacks
from agentic_django.openai_agents.journaled_models import JournaledProvider, journaled_model
from agentic_django.openai_agents.tool_marks import approval_wording, is_editable

__all__ = ["JournalingRunner", "host_options", "install_runner", "run_agent", "sdk_options"]


@mcp_servers.servers_of_attempt()
async def run_agent(
    agent: agents.Agent[Any], journal: Journal, given: Any, history: Session | None = None
) -> Any:
    """Run an SDK agent, streamed, with the run's options, and return its final output.

    ``given`` is a string or a list of input items. With a history, the input and the output are
    added to it. Raises RunSuspended if a person must first decide about a tool call.
    """
    run = journal.run
    install_runner()
    tool_context = await event_loop.run_host_code(_tool_context, run)
    scope = current_scope() or CallScope(journal)
    options = {"session": history, "context": tool_context, **sdk_options(run)}
    with journal.enforced_end():
        with enter_scope(scope):
            result = agents.Runner.run_streamed(agent, given, **options)
            child = scope.latest_child(agent.name)
        await _consume(result, child)
        while result.interruptions:
            with journal.enforced_end():  # All questions are collected before the run is suspended.
                state = await _apply_decisions(result, child)
            with enter_scope(scope):
                scope.resumed = child
                result = agents.Runner.run_streamed(agent, state, **options)
            await _consume(result, child)
    return result.final_output


def _tool_context(run: AgentRun) -> Any:
    factory = settings.CONTEXT_FACTORY
    return load(factory)(run) if factory else run


async def _consume(result: RunResultStreaming, scope: CallScope) -> None:
    try:
        with note_refusals(scope), foreign_cancellation_fails():
            async for _ in result.stream_events():
                pass
            if result.run_loop_task is not None and result.run_loop_task.cancelled():
                result.run_loop_task.result()
    except ModelBehaviorError as error:
        with suppress(AgentChanged):
            scope.journal.check_used()
            raise
        raise AgentChanged(f"{AgentChanged.__doc__} {error}") from error


@contextmanager
def note_refusals(scope: CallScope) -> Iterator[None]:
    """Note which response the SDK or an output guardrail refuses, if it does so in this block."""
    try:
        yield
    except (ModelBehaviorError, agents.OutputGuardrailTripwireTriggered) as error:
        scope.journal.note_refusal(error, scope.model_key(scope.response_count))
        raise


async def _apply_decisions(result: RunResultStreaming, scope: CallScope) -> RunState[Any]:
    """Return the SDK's state with a person's decision about each interrupted call.

    Each attempt rebuilds the state from the journal. It is never stored, because it holds the
    host's context. If a decision is missing, the journal ends the attempt.
    """
    journal, state = scope.journal, result.to_state()
    for item in result.interruptions:
        _, key = journal.nested_keys.get(id(item), (item, scope.tool_key(item.call_id or "")))
        decided = journal.decided(key)
        if decided is None and journal.find(key) is None:
            journal.request(key, **_approval_columns(item))
        elif decided is None or decided.decision == ToolApproval.Decision.APPROVED:
            state.approve(item)
        else:
            state.reject(item, rejection_message=decided.rejection_message)
            if decided.kind == ToolApproval.Kind.TOOL and journal.find(key) is None:
                await _record_rejection(journal, key, decided)
    return state


def _approval_columns(item: ToolApprovalItem) -> dict[str, Any]:
    """Return the columns of the ``ToolApproval`` for a call that the SDK has interrupted."""
    raw = item.raw_item
    raw_type = raw.get("type") if isinstance(raw, dict) else getattr(raw, "type", "")
    is_hosted = raw_type == "mcp_approval_request"
    tools = {tool.name: tool for tool in item.agent.tools if isinstance(tool, FunctionTool)}
    tool = tools.get(item.name or "")
    arguments = conversion.parsed_arguments(item.arguments or "{}")
    return {
        "kind": ToolApproval.Kind.MCP if is_hosted else ToolApproval.Kind.TOOL,
        "call_id": (item.call_id or "")[:255],
        "tool": (item.name or "")[:255],
        "agent": item.agent.name[:255],
        "arguments": arguments,
        "schema": tool.params_json_schema if tool and is_editable(tool) else None,
        **approval_wording(tool, arguments),
    }


async def _record_rejection(journal: Journal, key: str, decided: ToolApproval) -> None:
    """Record the rejection message that the model gets instead of a result."""
    result = CallResult(key, StepCheckpoint.Kind.TOOL, decided.tool, decided.rejection_message, 0.0)
    output = events.new_event(
        EventType.TOOL_OUTPUT,
        call_id=decided.call_id,
        tool=decided.tool,
        output=decided.rejection_message,
        duration_seconds=0,
    )
    await journal.record(result, [output])


def sdk_options(run: AgentRun) -> dict[str, Any]:
    """Return the options with which the SDK runs an agent: the host's defaults, then the run's.

    Options are arguments of ``Runner.run`` and fields of the SDK's ``RunConfig``. So a run can set
    one field and keep the host's other fields.
    """
    options = {**settings.DEFAULT_RUN_OPTIONS, **run.config}
    names = {field.name for field in fields(agents.RunConfig)} & set(options)
    if names:
        own = {name: options.pop(name) for name in names}
        options["run_config"] = replace(_run_config(options.get("run_config")), **own)
    return options


def _run_config(given: Any) -> agents.RunConfig:
    return agents.RunConfig(**given) if isinstance(given, dict) else given or agents.RunConfig()


class JournalingRunner(AgentRunner):
    """Opens a scope for each agent that is run within a run, and delegates to another runner."""

    def __init__(self, inner: AgentRunner) -> None:
        self.inner = inner

    async def run(self, starting_agent: Any, input: Any, **kwargs: Any) -> Any:
        """See ``agents.Runner.run``."""
        outer = current_scope()
        if outer is None:
            return await self.inner.run(starting_agent, input, **kwargs)
        prepare_agent(starting_agent)
        scope = outer.child(starting_agent.name, input)
        with enter_scope(scope), note_refusals(scope):
            return await self.inner.run(starting_agent, input, **_with_journal(kwargs, scope))

    def run_sync(self, starting_agent: Any, input: Any, **kwargs: Any) -> Any:
        """See ``agents.Runner.run_sync``. Within a run it uses the event loop of the process."""
        if current_scope() is None:
            return self.inner.run_sync(starting_agent, input, **kwargs)
        return event_loop.run_on_loop(lambda: self.run(starting_agent, input, **kwargs))

    def run_streamed(self, starting_agent: Any, input: Any, **kwargs: Any) -> Any:
        """See ``agents.Runner.run_streamed``."""
        outer = current_scope()
        if outer is None:
            return self.inner.run_streamed(starting_agent, input, **kwargs)
        prepare_agent(starting_agent)
        scope = outer.child(starting_agent.name, input)
        with enter_scope(scope):
            return self.inner.run_streamed(starting_agent, input, **_with_journal(kwargs, scope))


def _with_journal(kwargs: dict[str, Any], scope: CallScope) -> dict[str, Any]:
    """Return a runner's arguments with models that record responses, and moved callbacks.

    Turns are counted from a person's last retry.
    """
    max_turns = kwargs.get("max_turns", DEFAULT_MAX_TURNS)
    if max_turns is not None:
        max_turns += scope.turns_before_retry
    config = _run_config(kwargs.get("run_config"))
    provider = config.model_provider
    if not isinstance(provider, JournaledProvider):
        inner = providers.shared_provider() if type(provider) is MultiProvider else provider
        config = replace(config, model_provider=JournaledProvider(inner))
    if isinstance(config.model, Model):
        config = replace(config, model=journaled_model(config.model))
    name_guardrails("run-input", config.input_guardrails or ())
    name_guardrails("run-output", config.output_guardrails or ())
    handlers = kwargs.get("error_handlers") or {}
    return {
        **kwargs,
        "max_turns": max_turns,
        "run_config": with_moved_callbacks(config),
        "error_handlers": {name: on_run_thread(each) for name, each in handlers.items()},
    }


def install_runner() -> None:
    """Wrap the SDK's default runner in a ``JournalingRunner``, and hook the agent classes."""
    hook_agent_classes()
    present = get_default_agent_runner()
    if not isinstance(present, JournalingRunner):
        set_default_agent_runner(JournalingRunner(present))


def host_options() -> set[str]:
    """Return the names of all options that a host may set: the runner's and its RunConfig's."""
    arguments = {"max_turns", "run_config", "hooks", "error_handlers"}
    return arguments | {field.name for field in fields(agents.RunConfig)}
