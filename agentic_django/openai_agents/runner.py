"""The seams to the Agents SDK; the only caller of ``Runner``."""

from __future__ import annotations

from contextlib import suppress
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
from agents.run_state import RunState
from agents.tool import FunctionTool

from agentic_django.concurrency import event_loop
from agentic_django.conf import load, settings
from agentic_django.engine import events
from agentic_django.engine.events import EventType
from agentic_django.engine.journal import CallResult, Journal
from agentic_django.exceptions import AgentChanged
from agentic_django.models import AgentRun, StepCheckpoint, ToolApproval
from agentic_django.openai_agents import conversion, providers
from agentic_django.openai_agents.agents import hook_agent_classes, prepare_agent
from agentic_django.openai_agents.call_scope import CallScope, current_scope, enter_scope
from agentic_django.openai_agents.models import JournaledProvider, journaled_model
from agentic_django.openai_agents.tools import approval_wording

__all__ = ["install_runner", "run_agent", "sdk_options"]


async def run_agent(
    agent: agents.Agent[Any], journal: Journal, given: Any, history: Session | None = None
) -> Any:
    """Run an SDK agent, streamed, with the run's options; return its final output.

    ``given`` is a text or a list of input items; with a history, both belong to that.
    """
    run = journal.run
    install_runner()
    tool_context = await event_loop.run_host_code(_tool_context, run)
    scope = current_scope() or CallScope(journal)
    chosen = {"session": history, "context": tool_context, **sdk_options(run)}
    with enter_scope(scope):
        result = agents.Runner.run_streamed(agent, given, **chosen)
        child = scope.called(agent.name)
    await _drain(result, journal)
    while result.interruptions:
        state = await _decided(result, child)
        with enter_scope(scope):
            scope.resumed = child
            result = agents.Runner.run_streamed(agent, state, **chosen)
        await _drain(result, journal)
    return result.final_output


async def _drain(result: RunResultStreaming, journal: Journal) -> None:
    try:
        async for _ in result.stream_events():
            pass
    except ModelBehaviorError as error:
        journal.check()
        with suppress(AgentChanged):
            journal.check_used()
            raise
        raise AgentChanged(f"{AgentChanged.__doc__} {error}") from error
    finally:
        if not result.interruptions:  # Else it asks first, though the run is to be parked already.
            journal.check()


async def _decided(result: RunResultStreaming, scope: CallScope) -> RunState[Any]:
    """Return the state from which the SDK goes on, with what a person decided of each call.

    It is made anew from the journal in each attempt and never stored: it holds the host's
    context. Raises RunSuspended if a person is yet to decide.
    """
    journal, state = scope.journal, result.to_state()
    for item in result.interruptions:
        _, key = journal.held.get(id(item), (item, scope.tool_key(item.call_id or "")))
        decided = journal.decided(key)
        if decided is None and journal.find(key) is None:
            journal.ask(key, **_asked(item))
        elif decided is None or decided.decision == ToolApproval.Decision.APPROVED:
            state.approve(item)
        else:
            state.reject(item, rejection_message=decided.rejection_message)
            await _record_refusal(journal, key, decided)
    journal.check()
    return state


def _asked(item: ToolApprovalItem) -> dict[str, Any]:
    """Return what a person is asked about a call that the SDK has held up."""
    kind = ToolApproval.Kind
    name, agent = item.name or "", item.agent
    known = {tool.name: tool for tool in agent.tools if isinstance(tool, FunctionTool)}
    is_editable = name in known and hasattr(known[name], "agentic_editable")
    arguments = conversion.parsed_arguments(item.arguments or "{}")
    return {
        "kind": kind.MCP if _is_hosted(item.raw_item) else kind.TOOL,
        "call_id": (item.call_id or "")[:255],
        "tool": name[:255],
        "agent": agent.name[:255],
        "arguments": arguments,
        "schema": known[name].params_json_schema if is_editable else None,
        **approval_wording(known.get(name), arguments),
    }


def _is_hosted(raw: Any) -> bool:
    kind = raw.get("type") if isinstance(raw, dict) else getattr(raw, "type", "")
    return kind == "mcp_approval_request"


async def _record_refusal(journal: Journal, key: str, decided: ToolApproval) -> None:
    """Record what the model is told in the place of a result, unless it is recorded."""
    if decided.kind != ToolApproval.Kind.TOOL or journal.find(key) is not None:
        return
    result = CallResult(key, StepCheckpoint.Kind.TOOL, decided.tool, decided.rejection_message, 0.0)
    told = events.new_event(
        EventType.TOOL_OUTPUT,
        call_id=decided.call_id,
        tool=decided.tool,
        output=decided.rejection_message,
        duration_seconds=0,
    )
    await journal.record(result, [told])


def sdk_options(run: AgentRun) -> dict[str, Any]:
    """Return the SDK's run options: the host's defaults, then the run's own.

    Fields of the SDK's ``RunConfig`` stand beside the runner's arguments, so that a run can set
    one of them and leave the host's others as they are.
    """
    chosen = {**settings.DEFAULT_RUN_OPTIONS, **run.config}
    names = {field.name for field in fields(agents.RunConfig)} & set(chosen)
    if names:
        own = {name: chosen.pop(name) for name in names}
        chosen["run_config"] = replace(_run_config(chosen.get("run_config")), **own)
    return chosen


def _run_config(given: Any) -> agents.RunConfig:
    return agents.RunConfig(**given) if isinstance(given, dict) else given or agents.RunConfig()


def _tool_context(run: AgentRun) -> Any:
    factory = settings.CONTEXT_FACTORY
    return load(factory)(run) if factory else run


class JournalingRunner(AgentRunner):
    """The SDK's runner; opens a scope for each agent that is run within a run of ours."""

    def __init__(self, inner: AgentRunner) -> None:
        self.inner = inner

    async def run(self, starting_agent: Any, input: Any, **kwargs: Any) -> Any:
        """See ``agents.Runner.run``."""
        outer = current_scope()
        if outer is None:
            return await self.inner.run(starting_agent, input, **kwargs)
        prepare_agent(starting_agent)
        with enter_scope(outer.child(starting_agent.name, input)):
            return await self.inner.run(starting_agent, input, **_configured(kwargs))

    def run_sync(self, starting_agent: Any, input: Any, **kwargs: Any) -> Any:
        """See ``agents.Runner.run_sync``; within a run, on the process's own loop."""
        if current_scope() is None:
            return self.inner.run_sync(starting_agent, input, **kwargs)
        return event_loop.run_on_loop(lambda: self.run(starting_agent, input, **kwargs))

    def run_streamed(self, starting_agent: Any, input: Any, **kwargs: Any) -> Any:
        """See ``agents.Runner.run_streamed``."""
        outer = current_scope()
        if outer is None:
            return self.inner.run_streamed(starting_agent, input, **kwargs)
        prepare_agent(starting_agent)
        with enter_scope(outer.child(starting_agent.name, input)):
            return self.inner.run_streamed(starting_agent, input, **_configured(kwargs))


def install_runner() -> None:
    """Make our runner the SDK's default, around the present one, and hook the agent classes."""
    hook_agent_classes()
    present = get_default_agent_runner()
    if not isinstance(present, JournalingRunner):
        set_default_agent_runner(JournalingRunner(present))


def _configured(kwargs: dict[str, Any]) -> dict[str, Any]:
    config = _run_config(kwargs.get("run_config"))
    provider = config.model_provider
    if not isinstance(provider, JournaledProvider):
        known = providers.shared_provider() if type(provider) is MultiProvider else provider
        config = replace(config, model_provider=JournaledProvider(known))
    if isinstance(config.model, Model):
        config = replace(config, model=journaled_model(config.model))
    return {**kwargs, "run_config": config}


def host_options() -> set[str]:
    """Return the names of all options that a host may set: the runner's and its RunConfig's."""
    from agents import RunConfig  # noqa: PLC0415 - see SDK_MAX_TURNS

    runner = {"max_turns", "run_config", "hooks", "error_handlers"}
    return runner | {field.name for field in fields(RunConfig)}
