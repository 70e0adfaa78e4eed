"""What drives the registered kinds of work; which one is decided here."""

from __future__ import annotations

import agents

from agentic_django import registry
from agentic_django.exceptions import BadSetting
from agentic_django.models import AgentRun
from agentic_django.runtime import Runtime
from agentic_django.runtimes.agent import SDKAgent

__all__ = ["runtime_for"]


def runtime_for(run: AgentRun) -> Runtime:
    """Return what drives a run; raises UnknownAgent or BadSetting.

    It calls the host's factory, which may use the ORM: to be called on the run's thread.
    """
    work = registry.get(run.agent_key)()
    if isinstance(work, agents.Agent):
        return SDKAgent(work)
    kind = type(work).__name__
    raise BadSetting(f"The factory of {run.agent_key!r} returned {kind}, not an agents.Agent.")
