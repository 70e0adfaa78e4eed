"""Pipelines: named steps, each recorded once.

A step's result, the state after it and the events that tell of it are written together. What
is recorded is not done again; what a failed attempt did to the state is forgotten.
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
