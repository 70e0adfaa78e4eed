"""Pipelines: named steps, each recorded once.

The result of a step, the state after it and its events are written in one transaction. A recorded
step is not executed again. If a step fails, its changes to the state are discarded.
"""

from agentic_django.exceptions import StepCancelledError, StepExecutionError, StepTimeoutError
from agentic_django.steps.definitions import Parallel, Pipeline, Step
from agentic_django.steps.executor import StepExecutor
from agentic_django.steps.state import ExecutionState

__all__ = [
    "ExecutionState",
    "Parallel",
    "Pipeline",
    "Step",
    "StepCancelledError",
    "StepExecutionError",
    "StepExecutor",
    "StepTimeoutError",
]
