"""Chooses the driver that executes a run, by the object that is registered for its agent key.

SDK agents, pipelines of steps and the host's own async functions each have a driver.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any

import agents

from agentic_django import registry
from agentic_django.exceptions import BadSetting
from agentic_django.models import AgentRun
from agentic_django.openai_agents import runner
from agentic_django.runtime import AgentRuntime, RunContext, RunResult, Runtime
from agentic_django.steps import Pipeline, StepExecutor, submitted

__all__ = ["driver_for"]


class AgentDriver:
    """Executes an ``agents.Agent``."""

    def __init__(self, agent: agents.Agent[Any]) -> None:
        self.agent = agent

    async def perform(self, context: RunContext) -> RunResult:
        """Run the agent to its final output."""
        output = await runner.run_agent(
            self.agent, context.journal, context.run.input_payload, context.history
        )
        return RunResult(output)


class FunctionDriver:
    """Executes ``async def run(ctx)``, which returns a RunResult or a plain output."""

    def __init__(self, run: Callable[[RunContext], Awaitable[Any]]) -> None:
        self.run = run

    async def perform(self, context: RunContext) -> RunResult:
        """Call the function, and add its messages to the conversation after the input."""
        async with context.recording():
            returned = await self.run(context)
        result = returned if isinstance(returned, RunResult) else RunResult(returned)
        await context.leave(result)
        return result


class PipelineDriver:
    """Executes a ``steps.Pipeline``. Its state begins as the run's ``params``."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    async def perform(self, context: RunContext) -> RunResult:
        """Execute the steps that are not recorded. The output is a dict of all results by name."""
        executor = StepExecutor(context)
        async with context.recording():
            results = await executor.run(
                self.pipeline.steps, initial_state=context.params, version=self.pipeline.version
            )
        await context.history.add_items(context.input_messages)
        return RunResult(results)


def driver_for(run: AgentRun) -> Runtime:
    """Return the driver that executes a run.

    This calls the agent's factory, which may use the ORM. Raises UnknownAgent if no agent has the
    run's key. Raises BadSetting if the factory returns an object that no driver executes.
    """
    if run.agent_key == submitted.AGENT_KEY:
        return PipelineDriver(submitted.pipeline_of(run))
    registered: Any = registry.get(run.agent_key)
    work = registered if inspect.iscoroutinefunction(registered) else registered()
    match work:
        case agents.Agent():
            return AgentDriver(work)
        case Pipeline():
            return PipelineDriver(work)
        case AgentRuntime():
            return FunctionDriver(work.run)
        case Runtime():
            return work
        case _ if inspect.iscoroutinefunction(work):
            return FunctionDriver(work)
    raise BadSetting(
        f"The factory of {run.agent_key!r} returned {type(work).__name__}. Return an "
        "agents.Agent, a steps.Pipeline, a runtime.AgentRuntime or an async function."
    )
