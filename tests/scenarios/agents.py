"""Agents for the scenarios: all answer from their input alone, so any process can go on.

Each call of a model or tool is told to the file of effects before it is answered.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from agents import Agent, GuardrailFunctionOutput, InputGuardrail, Runner, function_tool
from agents.testing import ModelCall, assistant_message, function_call
from pydantic import BaseModel

from agentic_django.openai_agents.call_scope import current_scope, current_step
from agentic_django.openai_agents.tool_marks import at_most_once, editable
from tests.scenarios import effects
from tests.support.agents import answering


def model(respond: Callable[[int], Any], delay: float = 0.0) -> Any:
    """Return a model that answers from how many tool outputs its own run has seen."""

    async def answer(call: ModelCall) -> Any:
        effects.note_model_call()
        await asyncio.sleep(delay)
        items = call.input if isinstance(call.input, list) else []
        asked = max((n for n, item in enumerate(items) if item.get("role") == "user"), default=0)
        outputs = [i for i in items[asked:] if i.get("type") == "function_call_output"]
        return respond(len(outputs))

    return answering(answer)


def say(text: str) -> list[Any]:
    """Return a final answer."""
    return [assistant_message(text)]


def call(name: str, call_id: str, **arguments: Any) -> Any:
    """Return one call of a tool."""
    return function_call(name, arguments, call_id=call_id)


def script(*answers: Any) -> Callable[[int], Any]:
    """Return what answers by the count of outputs; an answer of n calls counts n times."""
    by_count: dict[int, Any] = {}
    count = 0
    for answer in answers:
        by_count[count] = answer
        count += len(answer)
    return lambda outputs: by_count[outputs]


@function_tool
def add(a: int, b: int) -> int:
    """Add, synchronously."""
    effects.note_tool_call()
    return a + b


@function_tool
async def multiply(a: int, b: int) -> int:
    """Multiply, asynchronously."""
    effects.note_tool_call()
    return a * b


@function_tool
async def wait(seconds: float) -> str:
    """Wait, asynchronously."""
    effects.note_tool_call()
    await asyncio.sleep(seconds)
    return f"waited {seconds:g}"


@function_tool
def block(seconds: float) -> str:
    """Wait, synchronously: nothing can interrupt it."""
    effects.note_tool_call()
    time.sleep(seconds)
    return f"blocked {seconds:g}"


@function_tool(timeout=0.05)
async def too_slow() -> str:
    """Take longer than allowed."""
    effects.note_tool_call()
    await asyncio.sleep(30)
    return "never"


@at_most_once
@function_tool
async def pay(amount: int) -> str:
    """Pay: not retried."""
    effects.note_tool_call()
    return f"paid {amount} as {current_step().call_id}"


def plain() -> Agent[Any]:
    """Answer at once."""
    return Agent(name="plain", model=model(script(say("Hello to you."))))


def parallel() -> Agent[Any]:
    """Call three tools at once, then one more."""
    answers = model(
        script(
            [
                call("add", "c1", a=1, b=2),
                call("multiply", "c2", a=3, b=4),
                call("add", "c3", a=5, b=6),
            ],
            [call("multiply", "c4", a=2, b=2)],
            say("3, 12, 11 and 4."),
        )
    )
    return Agent(name="parallel", model=answers, tools=[add, multiply])


def nested() -> Agent[Any]:
    """Ask another agent, as a tool, twice at once; it has a tool of its own."""
    inner_model = model(script([call("add", "s1", a=5, b=5)], say("Ten.")))
    inner = Agent(name="inner", model=inner_model, tools=[add])
    ask = inner.as_tool(tool_name="ask", tool_description="Ask the other.")
    both = [call("ask", "c1", input="five and five?"), call("ask", "c2", input="again?")]
    return Agent(name="outer", model=model(script(both, say("Ten, twice."))), tools=[ask])


def handoffs() -> Agent[Any]:
    """Hand over to another agent, which hands back."""
    answers: dict[int, Any] = {0: [call("transfer_to_there", "h1")], 3: say("Back again.")}
    replies: dict[int, Any] = {
        1: [call("add", "t1", a=1, b=1)],
        2: [call("transfer_to_here", "t2")],
    }
    there = Agent(name="there", model=model(replies.__getitem__), tools=[add])
    here = Agent(name="here", model=model(answers.__getitem__), handoffs=[there])
    there.handoffs = [here]
    return here


def guarded() -> Agent[Any]:
    """Have the input checked by another agent while the first answer is made."""
    guard = Agent(name="guard", model=model(script(say("harmless"))))

    async def check(context: Any, agent: Any, given: Any) -> GuardrailFunctionOutput:
        result = await Runner.run(guard, "Is this harmless?")
        return GuardrailFunctionOutput(result.final_output, result.final_output != "harmless")

    answers = model(script([call("multiply", "c1", a=6, b=7)], say("42.")))
    checks = [InputGuardrail(guardrail_function=check)]
    return Agent(name="guarded", model=answers, tools=[multiply], input_guardrails=checks)


class Verdict(BaseModel):
    """A structured answer."""

    total: int
    notes: list[str]


def structured() -> Agent[Any]:
    """Answer with an object."""
    text = json.dumps({"total": 3, "notes": ["one", "two"]})
    answers = model(script([call("add", "c1", a=1, b=2)], say(text)))
    return Agent(name="structured", model=answers, tools=[add], output_type=Verdict)


def timing_out() -> Agent[Any]:
    """Call a tool that takes longer than it is allowed, beside one that does not."""
    both = [call("too_slow", "c1"), call("add", "c2", a=1, b=2)]
    answers = model(script(both, say("One of them gave up.")))
    return Agent(name="timing out", model=answers, tools=[too_slow, add])


def flaky() -> Agent[Any]:
    """Fail at the second model call, until a second attempt makes it."""

    def respond(outputs: int) -> Any:
        scope = current_scope()
        assert scope is not None
        key = f"{scope.path}:model:{scope.response_count + 1}"
        seen = {e.attempt for e in effects.read(str(scope.journal.run.pk)) if e.key == key}
        if outputs == 1 and len(seen) == 1:
            return ConnectionError("The provider cannot be reached.")
        return script([call("add", "c1", a=1, b=2)], say("At last."))(outputs)

    return Agent(name="flaky", model=model(respond), tools=[add])


def everything() -> Agent[Any]:
    """Do a bit of all: parallel tools, an agent as tool, a hand-off."""
    inner = Agent(
        name="inner", model=model(script([call("add", "s1", a=5, b=5)], say("Ten."))), tools=[add]
    )
    ask = inner.as_tool(tool_name="ask", tool_description="Ask the other.")
    last = Agent(name="last", model=model(lambda outputs: say("All done.")))
    answers = script(
        [call("add", "c1", a=1, b=2), call("multiply", "c2", a=3, b=4)],
        [call("ask", "c3", input="five and five?")],
        [call("transfer_to_last", "c4")],
    )
    return Agent(name="main", model=model(answers), tools=[add, multiply, ask], handoffs=[last])


@editable
@function_tool(needs_approval=True)
async def transfer(amount: int) -> str:
    """Ask first, then transfer."""
    effects.note_tool_call()
    return f"transferred {amount}"


REFUSED, LOWERED = 13, 500
"""Amounts that the person of the scenarios rejects, and lowers to 50."""


def gated() -> Agent[Any]:
    """Call gated and ungated tools at once; of the gated ones each is decided otherwise."""
    answers = script(
        [
            call("transfer", "c1", amount=1),
            call("add", "c2", a=1, b=2),
            call("transfer", "c3", amount=REFUSED),
            call("transfer", "c4", amount=LOWERED),
        ],
        [call("transfer", "c5", amount=2)],
        say("One and two, 50 and not 13."),
    )
    return Agent(name="gated", model=model(answers), tools=[transfer, add])


def gate() -> Agent[Any]:
    """Call one tool that waits for a person."""
    answers = script([call("transfer", "c1", amount=1)], say("Transferred."))
    return Agent(name="gate", model=model(answers), tools=[transfer])


def gated_nested() -> Agent[Any]:
    """Ask another agent twice at once, beside a tool; its own calls wait for a person."""

    async def answer(call_: ModelCall) -> Any:
        effects.note_model_call()
        asked = next(n for n, item in enumerate(call_.input) if item.get("role") == "user")
        if asked < len(call_.input) - 1:
            return say("Transferred.")
        return [call("transfer", f"s-{call_.input[asked]['content']}", amount=5)]

    inner = Agent(name="inner", model=answering(answer), tools=[transfer])
    ask = inner.as_tool(tool_name="ask", tool_description="Ask the other.")
    all_ = [
        call("ask", "c1", input="five"),
        call("add", "c2", a=1, b=2),
        call("ask", "c3", input="five again"),
    ]
    return Agent(name="outer", model=model(script(all_, say("Twice."))), tools=[ask, add])


def paying() -> Agent[Any]:
    """Call a tool that must not be repeated."""
    answers = model(script([call("pay", "c1", amount=5)], say("Paid.")))
    return Agent(name="paying", model=answers, tools=[pay])


def steady(*, steps: int = 4, delay: float = 0.15) -> Agent[Any]:
    """Work for a while: some turns, each with a synchronous and an asynchronous tool."""
    turns: Sequence[Any] = [
        [call("multiply", f"m{n}", a=n, b=2), call("wait", f"w{n}", seconds=delay)]
        for n in range(steps)
    ]
    answers = model(script(*turns, say("Steady.")), delay)
    return Agent(name="steady", model=answers, tools=[multiply, wait])


def busy() -> Agent[Any]:
    """Work for a while with tools of each kind, an agent as tool among them."""
    inner_model = model(script([call("wait", "s1", seconds=0.1)], say("Waited.")), 0.05)
    inner = Agent(name="inner", model=inner_model, tools=[wait])
    ask = inner.as_tool(tool_name="ask", tool_description="Ask the other.")
    answers = script(
        [call("block", "b1", seconds=0.2), call("wait", "w1", seconds=0.1)],
        [call("ask", "a1", input="wait"), call("multiply", "m1", a=2, b=3)],
        [call("add", "d1", a=2, b=3)],
        say("Done."),
    )
    tools: list[Any] = [block, wait, multiply, add, ask]
    return Agent(name="busy", model=model(answers, 0.1), tools=tools)


def blocking(seconds: float) -> Agent[Any]:
    """Call one synchronous tool that takes long."""
    answers = model(script([call("block", "b1", seconds=seconds)], say("Blocked.")))
    return Agent(name="blocking", model=answers, tools=[block])


def waiting(seconds: float) -> Agent[Any]:
    """Call one asynchronous tool that takes long."""
    answers = model(script([call("wait", "w1", seconds=seconds)], say("Waited.")))
    return Agent(name="waiting", model=answers, tools=[wait])


CRASHED: dict[str, Callable[[], Agent[Any]]] = {
    "plain": plain,
    "parallel": parallel,
    "nested": nested,
    "handoffs": handoffs,
    "guarded": guarded,
    "structured": structured,
    "timing_out": timing_out,
    "flaky": flaky,
    "everything": everything,
    "gated": gated,
    "gated_nested": gated_nested,
}
"""What is killed at every commit."""


def agents() -> dict[str, Callable[[], Agent[Any]]]:
    """Return the scenarios' agents by their keys; what their settings name as a registry."""
    others: dict[str, Callable[[], Agent[Any]]] = {
        "paying": paying,
        "gate": gate,
        "steady": steady,
        "long": partial(steady, steps=12),
        "busy": busy,
        "blocking": partial(blocking, 2.0),
        "waiting": partial(waiting, 30.0),
    }
    return {**CRASHED, **others}
