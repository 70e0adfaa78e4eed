"""Journals the models and tools of every agent that the SDK runs within a run.

The SDK calls an agent's ``get_all_tools()`` at the start of each turn. The journal hooks into this
method of the agent classes, not of single agents. So it reaches agents that a handoff returns, and
copies that another library makes (``agent.clone()``). Outside a run it does nothing.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from functools import wraps
from typing import Any

from agents.agent import AgentBase
from agents.models.interface import Model

from agentic_django.openai_agents import mcp_servers
from agentic_django.openai_agents.call_scope import current_scope
from agentic_django.openai_agents.guardrails import name_guardrails
from agentic_django.openai_agents.host_callbacks import move_agent_callbacks
from agentic_django.openai_agents.journaled_models import journaled_model
from agentic_django.openai_agents.journaled_tools import journaled_tool
from agentic_django.openai_agents.recorded_tools import (
    keep_offered,
    with_stand_ins,
)

__all__ = ["hook_agent_classes", "prepare_agent"]

_HOOKED = "agentic_hooked"


def hook_agent_classes() -> None:
    """Hook each agent class that defines ``get_all_tools()``, once.

    Call it before each run: a host may have defined another class since the last one.
    """
    for kind in _with_subclasses(AgentBase):
        method = vars(kind).get("get_all_tools")
        if method is not None and not hasattr(method, _HOOKED):
            setattr(kind, "get_all_tools", _hooked(method))  # noqa: B010 - mypy refuses a method


def _with_subclasses(kind: Any) -> Iterator[Any]:
    yield kind
    for subclass in kind.__subclasses__():
        yield from _with_subclasses(subclass)


def _hooked(method: Callable[..., Awaitable[list[Any]]]) -> Callable[..., Awaitable[list[Any]]]:
    @wraps(method)
    async def get_all_tools(self: Any, *args: Any, **kwargs: Any) -> list[Any]:
        scope = current_scope()
        if scope is None:
            return await method(self, *args, **kwargs)
        scope.begin_turn(self.name)
        prepare_agent(self)
        try:
            await mcp_servers.connect(self.mcp_servers)
        except Exception as error:  # noqa: BLE001 - an outer agent must not get it as a tool's result
            raise scope.journal.must_end(error) from None
        number = scope.processed_response
        with scope.listing_tools():
            tools = await method(self, *args, **kwargs)
        scope.is_resumed = False
        return [journaled_tool(t) for t in with_stand_ins(scope, self, tools, number)]

    setattr(get_all_tools, _HOOKED, True)
    return get_all_tools


def prepare_agent(agent: Any) -> None:
    """Journal an agent's model, if it is an instance; name its guardrails; move its callbacks.

    The agent is changed in place, once. A copy would not work: the SDK finds approvals, handoffs
    and pending tool calls by the identity of their agents and tools.
    """
    if isinstance(getattr(agent, "model", None), Model):
        agent.model = journaled_model(agent.model)
    name_guardrails("input", getattr(agent, "input_guardrails", ()))
    name_guardrails("output", getattr(agent, "output_guardrails", ()))
    move_agent_callbacks(agent)
    keep_offered(agent)
