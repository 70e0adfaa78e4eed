"""Drives a pipeline: its results by name are the run's output."""

from __future__ import annotations

from agentic_django.runtime import RunContext, RunResult
from agentic_django.steps import Pipeline, StepExecutor

__all__ = ["Steps"]


class Steps:
    """The runtime for a ``steps.Pipeline``; the state begins as the run's ``params``."""

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    async def perform(self, context: RunContext) -> RunResult:
        """Perform the steps that are not recorded yet."""
        executor = StepExecutor(context)
        async with context.recording():
            results = await executor.run(
                self.pipeline.steps, initial_state=context.params, version=self.pipeline.version
            )
        context.journal.check()
        await context.history.add_items(context.input_messages)
        return RunResult(results)
