"""Checks that the agents and tools for which runs wait still exist."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import agents
from django.core import checks
from django.core.checks import CheckMessage, register
from django.db import Error

from agentic_django import registry
from agentic_django.checks.reporting import is_valid, warning
from agentic_django.conf import settings
from agentic_django.engine import approval_requests
from agentic_django.exceptions import BadSetting
from agentic_django.openai_agents.sdk_internals import agent_behind_tool, is_agent_tool
from agentic_django.runtime import inline
from agentic_django.steps import submitted

_HINT = "Restore the agent or tool until these runs are decided, or cancel the runs."
_UNREGISTERED = {submitted.AGENT_KEY, inline.AGENT_KEY}

MAX_APPROVALS = 1000
"""The number of undecided approvals that the check reads."""

type ToolNames = dict[str, set[str] | None]
"""Tool names by agent name. None stands for tools that only a running agent knows."""


@register(checks.Tags.database)
def check_waiting_runs(databases: Any = None, **_: Any) -> Iterator[CheckMessage]:
    """W020, W021: runs wait for a decision, but their agent or tool no longer exists.

    Queries the database, so it runs only in ``check --database default`` and ``migrate``.
    """
    if not databases or not is_valid("DATABASE") or settings.DATABASE not in databases:
        return
    try:
        waiting = list(approval_requests.approval_rows().waiting_calls()[:MAX_APPROVALS])
        keys = set(registry.keys())
    except (Error, BadSetting):  # The table does not exist yet, or E002 reports the registry.
        return
    waiting_keys = {approval.run.agent_key for approval in waiting}
    for key in sorted(waiting_keys - keys - _UNREGISTERED):
        message = f"Runs of the agent {key!r} wait for a person, but it is not registered."
        yield warning(20, message, _HINT)
    known = {key: _tool_names(key) for key in waiting_keys & keys}
    missing = set()
    for approval in waiting:
        by_agent = known.get(approval.run.agent_key)
        tools = None if by_agent is None else by_agent.get(approval.agent, set())
        if tools is not None and approval.tool not in tools:
            missing.add((approval.agent, approval.tool))
    for agent, tool in sorted(missing):
        message = (
            f"A run waits for a decision about {tool!r}, which the agent {agent!r} no longer has."
        )
        yield warning(21, message, _HINT)


def _tool_names(agent_key: str) -> ToolNames | None:
    """Return the tools of an agent and of the agents it can call.

    The result is None for work that is not an agent of the SDK.
    """
    try:
        root: Any = registry.get(agent_key)()
    except Exception:  # noqa: BLE001 - a factory of the host's, which may need a run
        return None
    found: ToolNames = {}
    pending = [root] if isinstance(root, agents.Agent) else []
    while pending:
        agent = pending.pop()
        if agent.name in found:
            continue
        functions = [tool for tool in agent.tools if isinstance(tool, agents.FunctionTool)]
        is_open = agent.mcp_servers or len(functions) < len(agent.tools)
        found[agent.name] = None if is_open else {tool.name for tool in functions}
        pending += [h for h in agent.handoffs if isinstance(h, agents.Agent)]
        pending += [agent_behind_tool(tool) for tool in functions if is_agent_tool(tool)]
    return found or None
