"""Drives an agent of the OpenAI Agents SDK."""

from __future__ import annotations

from typing import Any

import agents

from agentic_django import sdk
from agentic_django.runtime import RunContext, RunResult


class SDKAgent:
    """The runtime for an ``agents.Agent``."""

    def __init__(self, agent: agents.Agent[Any]) -> None:
        self.agent = agent

    async def perform(self, context: RunContext) -> RunResult:
        """Run the agent to its final output."""
        output = await sdk.run_agent(
            self.agent, context.journal, context.run.input_payload, context.history
        )
        return RunResult(output)
