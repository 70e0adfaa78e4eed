"""The seams to the Agents SDK; the only caller of ``Runner``."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import agents
from agents.memory import Session
from agents.models.interface import Model
from agents.models.multi_provider import MultiProvider
from agents.run import AgentRunner, get_default_agent_runner, set_default_agent_runner

from agentic_django import generation, threads
from agentic_django.conf import load, settings
from agentic_django.journal import Journal
from agentic_django.journaled import JournaledProvider, instrumented, journaled_model
from agentic_django.models import AgentRun
from agentic_django.scope import Scope, current_scope, within

__all__ = ["install", "options", "run_agent"]


async def run_agent(
    agent: agents.Agent[Any], journal: Journal, given: Any, history: Session | None = None
) -> Any:
    """Run an SDK agent, streamed, with the run's options; return its final output.

    ``given`` is a text or a list of input items; with a history, both belong to that.
    """
    run = journal.run
    install()
    tool_context = await threads.call_host(_tool_context, run)
    with within(current_scope() or Scope(journal)):
        result = agents.Runner.run_streamed(
            agent, given, session=history, context=tool_context, **options(run)
        )
    try:
        async for _ in result.stream_events():
            pass
    finally:
        journal.check()
    return result.final_output


def options(run: AgentRun) -> dict[str, Any]:
    """Return the SDK's run options: the host's defaults, then the run's own.

    Fields of the SDK's ``RunConfig`` stand beside the runner's arguments, so that a run can set
    one of them and leave the host's others as they are.
    """
    chosen = {**settings.DEFAULT_RUN_OPTIONS, **run.config}
    names = {field.name for field in fields(agents.RunConfig)} & set(chosen)
    if names:
        own = {name: chosen.pop(name) for name in names}
        chosen["run_config"] = replace(_run_config(chosen.get("run_config")), **own)
    return chosen


def _run_config(given: Any) -> agents.RunConfig:
    return agents.RunConfig(**given) if isinstance(given, dict) else given or agents.RunConfig()


def _tool_context(run: AgentRun) -> Any:
    factory = settings.CONTEXT_FACTORY
    return load(factory)(run) if factory else run


class JournalingRunner(AgentRunner):
    """The SDK's runner; opens a scope for each agent that is run within a run of ours."""

    def __init__(self, inner: AgentRunner) -> None:
        self.inner = inner

    async def run(self, starting_agent: Any, input: Any, **kwargs: Any) -> Any:
        """See ``agents.Runner.run``."""
        outer = current_scope()
        if outer is None:
            return await self.inner.run(starting_agent, input, **kwargs)
        with within(outer.child(starting_agent.name, input)):
            return await self.inner.run(instrumented(starting_agent), input, **_configured(kwargs))

    def run_sync(self, starting_agent: Any, input: Any, **kwargs: Any) -> Any:
        """See ``agents.Runner.run_sync``; within a run, on the process's own loop."""
        if current_scope() is None:
            return self.inner.run_sync(starting_agent, input, **kwargs)
        return threads.run_here(lambda: self.run(starting_agent, input, **kwargs))

    def run_streamed(self, starting_agent: Any, input: Any, **kwargs: Any) -> Any:
        """See ``agents.Runner.run_streamed``."""
        outer = current_scope()
        if outer is None:
            return self.inner.run_streamed(starting_agent, input, **kwargs)
        with within(outer.child(starting_agent.name, input)):
            return self.inner.run_streamed(
                instrumented(starting_agent), input, **_configured(kwargs)
            )


def install() -> None:
    """Put our runner in the place of the default one, around whatever a host put there."""
    present = get_default_agent_runner()
    if not isinstance(present, JournalingRunner):
        set_default_agent_runner(JournalingRunner(present))


def _configured(kwargs: dict[str, Any]) -> dict[str, Any]:
    config = _run_config(kwargs.get("run_config"))
    provider = config.model_provider
    if not isinstance(provider, JournaledProvider):
        known = generation.provider() if type(provider) is MultiProvider else provider
        config = replace(config, model_provider=JournaledProvider(known))
    if isinstance(config.model, Model):
        config = replace(config, model=journaled_model(config.model))
    return {**kwargs, "run_config": config}
