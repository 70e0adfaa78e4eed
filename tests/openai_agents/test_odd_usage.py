"""Counts of tokens that a provider leaves out, or sends in a form that the SDK does not expect."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import genai_prices
import pytest
from agents import Agent, Runner, function_tool
from agents.usage import Usage
from django.contrib.auth.models import User

from agentic_django.models import AgentRun
from agentic_django.openai_agents import conversion, pricing
from agentic_django.services import submit_agent_run
from tests.support.openai_server import Call, OpenAIServer, Reply

pytestmark = pytest.mark.django_db(transaction=True)

NULLS = {"input_tokens": None, "output_tokens": None, "total_tokens": None}
ODD_USAGE = [
    None,
    {},
    NULLS,
    {**NULLS, "input_tokens_details": None, "output_tokens_details": None},
    {"input_tokens": -3, "output_tokens": -4, "total_tokens": -7},
    {"input_tokens": 10, "input_tokens_details": {"cached_tokens": -1}},
    {"input_tokens": 10, "input_tokens_details": {"cached_tokens": 99}},
]


def submit(user: User, agent_key: str = "http") -> AgentRun:
    run = submit_agent_run(owner=user, input_payload="Hello", agent_key=agent_key)
    run.refresh_from_db()
    return run


def are_counts(usage: dict[str, Any]) -> bool:
    return all(isinstance(count, int | float) and 0 <= count < 1e9 for count in usage.values())


@pytest.mark.parametrize("usage", ODD_USAGE, ids=repr)
def test_odd_counts_of_tokens_do_not_fail_a_streamed_answer(
    user: User, openai_server: OpenAIServer, usage: Any
) -> None:
    openai_server.enqueue(Reply("An answer.", usage=usage))
    run = submit(user)
    assert (run.status, run.final_output) == ("completed", "An answer."), run.error_detail
    assert run.usage["requests"] == 1
    assert are_counts(run.usage), run.usage


@pytest.mark.parametrize("usage", ODD_USAGE, ids=repr)
def test_odd_counts_of_tokens_do_not_fail_an_answer_in_a_tool(
    user: User, openai_server: OpenAIServer, scripted: Any, usage: Any
) -> None:
    @function_tool
    async def ask() -> str:
        """Ask another agent, without a stream."""
        inner = await Runner.run(Agent(name="inner", model="gpt-5-mini"), "Hello")
        return str(inner.final_output)

    scripted("asking", model="gpt-5-mini", tools=[ask])
    openai_server.enqueue(Call("ask"), Reply("From the tool.", usage=usage), "An answer.")
    run = submit(user, "asking")
    assert (run.status, run.final_output) == ("completed", "An answer."), run.error_detail
    assert run.events.get(event_type="tool.output").payload["output"] == "From the tool."
    assert run.usage["requests"] == 3
    assert are_counts(run.usage), run.usage


@pytest.mark.parametrize("counts", ["ten", None, float("nan"), float("inf"), -1, [3], 10.5])
def test_model_of_the_host_may_return_any_count(counts: Any) -> None:
    returned = SimpleNamespace(input_tokens=counts, output_tokens=counts, requests=1)
    assert are_counts(conversion.usage_counts(conversion.usable_usage(returned)))


def test_model_of_the_host_may_return_no_usage() -> None:
    counts = conversion.usage_counts(conversion.usable_usage(None))
    assert counts == {"requests": 1, "input_tokens": 0, "output_tokens": 0, "total_tokens": 0}


def test_run_without_known_counts_has_no_cost(user: User, openai_server: OpenAIServer) -> None:
    openai_server.enqueue(Reply("An answer.", usage=NULLS))
    assert "cost_usd" not in submit(user).usage


def test_fault_of_the_price_list_does_not_fail_an_answer(
    user: User, openai_server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any, **options: Any) -> None:
        raise AttributeError("A fault of the price list.")

    monkeypatch.setattr(genai_prices, "calc_price", fail)
    openai_server.enqueue("An answer.")
    run = submit(user)
    assert (run.status, run.final_output) == ("completed", "An answer."), run.error_detail
    assert "cost_usd" not in run.usage


def test_model_whose_name_cannot_be_read_has_no_cost() -> None:
    class Nameless:
        @property
        def model(self) -> str:
            raise RuntimeError("Not connected.")

    assert pricing.cost(Nameless(), Usage(requests=1, input_tokens=10)) == {}
