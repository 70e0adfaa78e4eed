"""What drives the registered kinds of work; which one is decided here."""

from __future__ import annotations

import inspect
from typing import Any

import agents

from agentic_django import registry, submitted
from agentic_django.exceptions import BadSetting
from agentic_django.models import AgentRun
from agentic_django.runtime import AgentRuntime, Runtime
from agentic_django.runtimes.agent import SDKAgent
from agentic_django.runtimes.function import Function
from agentic_django.runtimes.pipeline import Steps
from agentic_django.steps import Pipeline

__all__ = ["runtime_for"]


def runtime_for(run: AgentRun) -> Runtime:
    """Return what drives a run; raises UnknownAgent or BadSetting.

    It calls the host's factory, which may use the ORM: to be called on the run's thread.
    """
    if run.agent_key == submitted.AGENT_KEY:
        return Steps(submitted.pipeline(run))
    registered: Any = registry.get(run.agent_key)
    if inspect.iscoroutinefunction(registered):
        return Function(registered)
    return _runtime_of(registered(), run.agent_key)


def _runtime_of(work: Any, key: str) -> Runtime:
    match work:
        case agents.Agent():
            return SDKAgent(work)
        case Pipeline():
            return Steps(work)
        case AgentRuntime():
            return Function(work.run)
        case Runtime():
            return work
    if inspect.iscoroutinefunction(work):
        return Function(work)
    raise BadSetting(
        f"The factory of {key!r} returned {type(work).__name__}. Return an agents.Agent, a "
        "steps.Pipeline, a runtime.AgentRuntime or an async function."
    )
