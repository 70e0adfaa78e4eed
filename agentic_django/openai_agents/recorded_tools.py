"""Gives an agent the tools that a recorded response calls, even if it no longer offers them.

A tool or hand-off may be offered by state (``is_enabled``, a factory, an MCP server), and a
recorded call may have changed that state. The SDK refuses a call of a tool that is not offered.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable
from functools import wraps
from typing import Any

from agents import Agent
from agents.handoffs import Handoff
from agents.tool import CustomTool, FunctionTool

from agentic_django.exceptions import AgentChanged
from agentic_django.models import StepCheckpoint
from agentic_django.openai_agents.call_scope import CallScope, current_scope

__all__ = ["keep_offered", "offered_names", "with_stand_ins"]

_KINDS = {"function_call": FunctionTool, "custom_tool_call": CustomTool}
_KEPT = "agentic_kept"

type _Offered = FunctionTool | Handoff[Any, Any]


def offered_names(
    output: Iterable[Any], tools: Iterable[Any], handoffs: Iterable[Any]
) -> list[str]:
    """Return the names of offered tools and hand-offs that a response calls."""
    offered = {getattr(tool, "name", "") for tool in tools} | {h.tool_name for h in handoffs}
    return sorted(offered & {item["name"] for item in output if item.get("type") in _KINDS})


def with_stand_ins(scope: CallScope, agent: Any, tools: list[Any], number: int) -> list[Any]:
    """Return an agent's tools, with a stand-in for each that it no longer has.

    The stand-in returns the result of a call that the response of this number made.
    """
    row = _response(scope, number)
    if row is None:
        return tools
    known = {getattr(tool, "name", "") for tool in tools} | set(map(_tool_name, _handoffs(agent)))
    stand_ins: dict[str, Any] = {}
    for item in _calls(row):
        if item["name"] not in known and _is_recorded(scope, number, item):
            stand_ins[item["name"]] = _stand_in(item["type"], item["name"])
    return [*tools, *stand_ins.values()]


def _calls(row: StepCheckpoint) -> list[Any]:
    """Return the calls in a response of tools and hand-offs outside of namespaces."""
    output = row.result["output"]
    return [i for i in output if i.get("type") in _KINDS and not i.get("namespace")]


def _is_recorded(scope: CallScope, number: int, call: Any) -> bool:
    return scope.journal.recorded(scope.tool_key(call["call_id"], number)) is not None


def _response(scope: CallScope, number: int) -> StepCheckpoint | None:
    """Return the recorded response that the SDK processes next, or None if it is to be asked."""
    row = scope.journal.recorded(scope.model_key(number))
    return None if row is None or row.error else row


def _stand_in(kind: str, name: str) -> Any:
    if kind == "custom_tool_call":
        return CustomTool(name=name, description="", on_invoke_tool=_missing(name))
    return FunctionTool(
        name=name,
        description="",
        params_json_schema={"type": "object", "properties": {}},
        on_invoke_tool=_missing(name),
        strict_json_schema=False,
    )


def _missing(name: str) -> Callable[[Any, str], Awaitable[Any]]:
    async def invoke(context: Any, arguments: str) -> Any:
        error = AgentChanged(
            f"The model called the tool {name!r}, and the agent no longer has it. Keep tools under "
            "their names while runs use them, or start the run again."
        )
        scope = current_scope()
        raise scope.journal.must_end(error) if scope else error

    return invoke


def keep_offered(agent: Any) -> None:
    """Enable an agent's tools and hand-offs for as long as a recorded response calls them.

    They are changed in place, once. A tool or hand-off that was not offered to the model, and has
    no recorded result, stays disabled.
    """
    tools = [tool for tool in agent.tools if isinstance(tool, FunctionTool)]
    handoffs = [handoff for handoff in _handoffs(agent) if isinstance(handoff, Handoff)]
    offered: list[_Offered] = [*tools, *handoffs]
    for each in offered:
        if each.is_enabled is not True and not hasattr(each.is_enabled, _KEPT):
            each.is_enabled = _kept(each, each.is_enabled)


def _kept(offered: _Offered, is_enabled: Any) -> Callable[..., Awaitable[bool]]:
    async def is_enabled_now(context: Any, agent: Any) -> bool:
        scope = current_scope()
        if scope is not None and _is_called(scope, offered):
            return True
        enabled = is_enabled(context, agent) if callable(is_enabled) else is_enabled
        return bool(await enabled if inspect.isawaitable(enabled) else enabled)

    call = wraps(is_enabled)(is_enabled_now) if callable(is_enabled) else is_enabled_now
    setattr(call, _KEPT, True)
    return call


def _is_called(scope: CallScope, offered: _Offered) -> bool:
    """Return whether the response that is processed calls a tool or hand-off that it was offered.

    The SDK lists the tools before a turn, and asks again before it calls them.
    """
    is_before_turn = scope.is_listing_tools or isinstance(offered, Handoff)
    number = scope.processed_response if is_before_turn else scope.response_count
    row = _response(scope, number)
    if row is None:
        return False
    name = offered.tool_name if isinstance(offered, Handoff) else offered.name
    calls = [call for call in _calls(row) if call["name"] == name]
    is_offered = name in row.result.get("offered", ())
    return any(is_offered or _is_recorded(scope, number, call) for call in calls)


def _handoffs(agent: Any) -> Iterable[Any]:
    return getattr(agent, "handoffs", ())


def _tool_name(handoff: Any) -> str:
    if isinstance(handoff, Agent):
        return Handoff.default_tool_name(handoff)
    return str(getattr(handoff, "tool_name", ""))
