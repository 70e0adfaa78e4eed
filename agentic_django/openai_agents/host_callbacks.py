"""Calls the synchronous callbacks of agents, tools, handoffs and run options on the run's thread.

The SDK calls such a callback on the event loop, where Django refuses the ORM. Within a run, a
callback that was passed through ``on_run_thread`` is called like a synchronous tool. The SDK
awaits the result. Asynchronous callbacks, and calls outside a run, are not changed.

``Agent.hooks`` and ``RunConfig.handoff_history_mapper`` are not here: the SDK requires that the
former are asynchronous, and does not await the latter.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import replace
from functools import wraps
from typing import Any

import agents
from agents.handoffs import Handoff

from agentic_django.concurrency import event_loop
from agentic_django.openai_agents import sdk_internals
from agentic_django.openai_agents.call_scope import current_scope

__all__ = [
    "move_agent_callbacks",
    "move_tool_callbacks",
    "on_run_thread",
    "with_moved_callbacks",
]

_MOVED = "agentic_on_run_thread"

_OF_AGENTS = ("instructions", "prompt", "tool_use_behavior")
_OF_HANDOFFS = ("input_filter", "is_enabled")
_OF_TOOLS = (
    "custom_data_extractor",
    "executor",
    "is_enabled",
    "on_approval",
    "on_approval_request",
    "on_safety_check",
    "timeout_error_function",
    sdk_internals.FAILURE_ERROR_FUNCTION,
)
_OF_SERVERS = (
    "tool_filter",
    "tool_meta_resolver",
    sdk_internals.APPROVAL_POLICY,
    sdk_internals.FAILURE_ERROR_FUNCTION,
)
_OF_RUN_CONFIG = (
    "call_model_input_filter",
    "handoff_input_filter",
    "session_input_callback",
    "tool_error_formatter",
)


def on_run_thread(callback: Any) -> Any:
    """Return a callback that is called on the run's thread, if this one is synchronous."""
    if not _is_synchronous(callback):
        return callback

    @wraps(callback)
    def call(*args: Any, **kwargs: Any) -> Any:
        if current_scope() is None:
            return callback(*args, **kwargs)
        return _call_on_run_thread(callback, args, kwargs)

    setattr(call, _MOVED, True)
    return call


def _is_synchronous(callback: Any) -> bool:
    """Return whether this is a host's callback that was not passed through ``on_run_thread``."""
    return (
        callable(callback)
        and not inspect.iscoroutinefunction(callback)
        and not hasattr(callback, _MOVED)
        and not sdk_internals.is_of_sdk(callback)
    )


async def _call_on_run_thread(callback: Any, args: Any, kwargs: Any) -> Any:
    value = await event_loop.run_host_code(callback, *args, **kwargs)
    return await value if inspect.isawaitable(value) else value


def move_agent_callbacks(agent: Any) -> None:
    """Change the callbacks of an agent and of its tools, handoffs and MCP servers, in place."""
    _move(agent, _OF_AGENTS)
    for tool in getattr(agent, "tools", ()):
        move_tool_callbacks(tool)
    for handoff in getattr(agent, "handoffs", ()):
        if isinstance(handoff, Handoff):
            for cell in sdk_internals.handoff_cells(handoff):
                cell.cell_contents = on_run_thread(cell.cell_contents)
            _move(handoff, _OF_HANDOFFS)
    for server in getattr(agent, "mcp_servers", ()):
        _move(server, _OF_SERVERS)
    config = getattr(agent, "mcp_config", None)
    if config and config.get("failure_error_function"):
        moved = on_run_thread(config["failure_error_function"])
        agent.mcp_config = {**config, "failure_error_function": moved}


def move_tool_callbacks(tool: Any) -> None:
    """Change the callbacks of a tool in place. The SDK compares tools by identity."""
    _move(tool, _OF_TOOLS)
    policy = getattr(tool, "needs_approval", None)
    if callable(policy) and not hasattr(policy, _MOVED):
        tool.needs_approval = _checked_policy(policy)


def with_moved_callbacks(config: agents.RunConfig) -> agents.RunConfig:
    """Return a run configuration whose callbacks are called on the run's thread."""
    present = {name: getattr(config, name) for name in _OF_RUN_CONFIG}
    return replace(config, **{name: on_run_thread(each) for name, each in present.items()})


def _move(owner: Any, names: Iterable[str]) -> None:
    for name in names:
        callback = getattr(owner, name, None)
        if _is_synchronous(callback):
            setattr(owner, name, on_run_thread(callback))


def _checked_policy(policy: Callable[..., Any]) -> Callable[..., Awaitable[Any]]:
    """Return a ``needs_approval`` whose error ends the attempt.

    Nobody would notice otherwise that the policy does not work: when the SDK resumes a turn it
    asks a person instead, and in an agent that is a tool the outer model gets the error as text.
    """
    moved = on_run_thread(policy)

    @wraps(policy)
    async def needs_approval(*args: Any, **kwargs: Any) -> Any:
        try:
            value = moved(*args, **kwargs)
            return await value if inspect.isawaitable(value) else value
        except Exception as error:
            scope = current_scope()
            if scope is not None:
                scope.journal.must_end(error)
            raise

    setattr(needs_approval, _MOVED, True)
    return needs_approval
