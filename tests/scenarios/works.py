"""Work of a host's own for the scenarios: pipelines, functions and classes that tell what they do.

They do the same with what is recorded as without it, so any process can go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from agents import Agent

from agentic_django.runtime import AgentRuntime, RunContext, RunResult, ToolRegistry
from agentic_django.steps import Parallel, Pipeline, Step, StepExecutor
from tests.scenarios import effects
from tests.scenarios.agents import add, call, model, say, script, transfer


async def asks(ctx: RunContext, text: str) -> Any:
    """Ask an agent of the SDK, which calls a tool."""
    answers = model(script([call("add", "c1", a=1, b=2)], say(f"{text}: three.")))
    return await ctx.run_agent(Agent(name="inner", model=answers, tools=[add]), text)


def square(n: int) -> int:
    """Do one part of many."""
    effects.note_tool_call()
    return n * n


async def parse(ctx: RunContext, state: dict[str, Any]) -> list[int]:
    """Do a part at a time."""
    effects.note_tool_call()
    state["parsed"] = True
    return [await ctx.step(f"square:{n}", square, n) for n in range(2)]


def save(ctx: RunContext, state: dict[str, Any]) -> dict[str, Any]:
    """Give back the state, synchronously."""
    effects.note_tool_call()
    return dict(state)


async def asking(ctx: RunContext) -> Any:
    """Ask a person between two parts of the work, and have an agent wait for one as well."""
    before = await ctx.step("before", square, 3)
    colour = await ctx.ask("Which colour?", options=["red", "blue"])
    answers = model(script([call("transfer", "c1", amount=1)], say("Transferred.")))
    agent = Agent(name="inner", model=answers, tools=[transfer])
    said = await ctx.run_agent(agent, colour)
    return [before, colour, said, await ctx.step("after", square, 4)]


def beside(name: str, seconds: float) -> Step:
    """Return a step that changes the state after a while."""

    async def fn(ctx: RunContext, state: dict[str, Any]) -> str:
        effects.note_tool_call()
        await asyncio.sleep(seconds)
        state[name] = True
        return name

    return Step(name, fn)


async def summarise(ctx: RunContext, state: dict[str, Any]) -> Any:
    """Have an agent do it."""
    effects.note_tool_call()
    return await asks(ctx, "Summary")


PIPELINE = Pipeline(
    [
        Step("parse", parse),
        Parallel(beside("chart", 0.0), beside("table", 0.2)),
        Step("summarise", summarise),
        Step("save", save),
    ]
)


def plus(a: int, b: int) -> int:
    """Add."""
    effects.note_tool_call()
    return a + b


async def by_hand(ctx: RunContext) -> RunResult:
    """Ask and call in a loop, keep a state, and have an agent do a part."""
    tools = ToolRegistry()
    tools.register(plus)
    both = [call("plus", "p1", a=1, b=2), call("plus", "p2", a=3, b=4)]
    asked = model(script(both, say("Three and seven.")))
    messages: list[Any] = [*ctx.input_messages]
    while (answer := await ctx.generate(messages, tools=tools, model=asked)).tool_calls:
        messages.append(answer.message)
        for one in answer.tool_calls:
            function = one["function"]
            output = await tools.execute(function["name"], function["arguments"], call_id=one["id"])
            messages.append({"role": "tool", "tool_call_id": one["id"], "content": output})
    messages.append(answer.message)
    if "asked" not in ctx.state:
        ctx.state["asked"] = await asks(ctx, "Again")
        await ctx.checkpoint()
    return RunResult({"said": answer.message.content, **ctx.state}, messages)


class ByHand(AgentRuntime):
    """Steps, and sub-steps, within a class."""

    async def run(self, ctx: RunContext) -> RunResult:
        """Do the same step under two keys, and a sub-step between them."""
        one = await StepExecutor(ctx, "one").run([Step("parse", parse)])
        between = await ctx.step("between", square, 5)
        two = await StepExecutor(ctx, "two").run([Step("save", save)], {"n": between})
        return RunResult([one, two], [{"role": "assistant", "content": "Done."}])


def works() -> dict[str, Callable[..., Any]]:
    """Return the scenarios' other work by its keys; what their settings name as a registry."""
    works = {"work_pipeline": PIPELINE, "work_function": by_hand, "work_class": ByHand}
    return {**works, "work_asking": asking}
