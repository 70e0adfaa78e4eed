"""What model calls cost, as far as that is known."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from agents.usage import Usage
from django.contrib.auth.models import User

from agentic_django.engine import usage
from agentic_django.models import AgentRun, StepCheckpoint
from agentic_django.openai_agents.pricing import cost
from agentic_django.presentation import conversation
from tests.support.rows import make_run, make_session

USAGE = Usage(requests=1, input_tokens=1000, output_tokens=100, total_tokens=1100)


def model(name: Any) -> Any:
    return SimpleNamespace(model=name)


@pytest.mark.parametrize("name", ["gpt-5-mini", "openai/gpt-5-mini", "litellm/openai/gpt-5-mini"])
def test_call_of_a_known_model_has_a_cost(name: str) -> None:
    assert cost(model(name), USAGE) == {"cost_usd": pytest.approx(0.00045)}


@pytest.mark.parametrize("name", ["nobodys-model", "", None, 3])
def test_call_of_an_unknown_model_has_no_cost(name: Any) -> None:
    assert cost(model(name), USAGE) == {}
    assert cost(object(), USAGE) == {}


def test_without_the_price_list_no_call_has_a_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "genai_prices", None)
    assert cost(model("gpt-5-mini"), USAGE) == {}


def total(*usages: dict[str, Any]) -> dict[str, Any]:
    return usage.total_usage([StepCheckpoint(usage=usage) for usage in usages])


def test_run_has_a_cost_only_if_all_its_calls_have_one() -> None:
    priced, free = {"requests": 1, "cost_usd": 0.25}, {"requests": 1}
    assert total(priced, {}, priced) == {"requests": 2, "cost_usd": 0.5}
    assert total(priced, free) == {"requests": 2}


def test_conversation_has_a_cost_only_if_all_its_runs_have_one(user: User) -> None:
    session = make_session(user)
    usage = {"requests": 1, "total_tokens": 10, "cost_usd": 0.25}
    for used in (usage, {}):
        run = make_run(user, session=session)
        AgentRun.objects.filter(pk=run.pk).update(usage=used)
    assert conversation.tokens_and_cost(session) == (10, 0.25)
    run = make_run(user, session=session)
    AgentRun.objects.filter(pk=run.pk).update(usage={"requests": 1, "total_tokens": 5})
    assert conversation.tokens_and_cost(session) == (15, None)
