"""Agents whose models and tools, and those of their hand-offs, are journaled."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from types import MethodType
from typing import Any

import agents
from agents.handoffs import Handoff
from agents.models.interface import Model

from agentic_django.openai_agents.call_scope import current_scope
from agentic_django.openai_agents.guardrails import name_guardrails
from agentic_django.openai_agents.models import journaled_model
from agentic_django.openai_agents.tools import journaled_tool

__all__ = ["with_journal"]


def with_journal(agent: agents.Agent[Any], seen: set[int] | None = None) -> agents.Agent[Any]:
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
    name_guardrails("input", agent.input_guardrails)
    name_guardrails("output", agent.output_guardrails)
    for handoff in agent.handoffs:
        _follow(handoff, seen)
    return agent


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
        with_journal(handoff, seen)
    elif isinstance(handoff, Handoff) and "agentic_followed" not in vars(handoff):
        vars(handoff)["agentic_followed"] = handoff.on_invoke_handoff
        handoff.on_invoke_handoff = _following(handoff.on_invoke_handoff)


def _following(invoke: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    async def on_invoke_handoff(context: Any, given: str) -> Any:
        return with_journal(await invoke(context, given))

    return on_invoke_handoff
