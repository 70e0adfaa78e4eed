"""What one bad value, one odd moment or one careless line of a host's must not break."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any

import agents
import pytest
from agents.testing import ModelStep, ScriptedModel, assistant_message
from django.contrib.auth.models import User
from django.db.models.functions import Now
from django.test import Client, override_settings

from agentic_django import registry, sessions
from agentic_django.concurrency.process_state import process
from agentic_django.engine import lifecycle, recovery, session_items
from agentic_django.engine.attempt import Attempt
from agentic_django.exceptions import BadInput, BadSetting
from agentic_django.models import AgentRun, AgentSession, AgentSessionItem, RunSlot
from agentic_django.openai_agents.tool_marks import at_most_once
from agentic_django.services import cancel_agent_run, submit_agent_run
from agentic_django.worker import executor
from tests.support.attempts import claim
from tests.support.rows import make_run, make_session

pytestmark = pytest.mark.django_db


def lose(run: AgentRun) -> None:
    """Let a run's lease end."""
    AgentRun.objects.filter(pk=run.pk).update(lease_ends_at=Now() - timedelta(minutes=5))


def pending(user: User, session: AgentSession | None = None, **columns: Any) -> AgentRun:
    """Return a run that nobody was told of."""
    return AgentRun.objects.create(
        owner=user, session=session, agent_key="echo", input_payload="hi", **columns
    )


def said_by(run: AgentRun) -> list[tuple[str, str]]:
    """Return the texts of a run's session, by who said them."""
    rows = AgentSessionItem.objects.filter(session=run.session).order_by("sequence")
    return [(item.payload["role"], str(item.payload["content"])) for item in rows]


def guarded_agent(first_delay: float, asked: list[str]) -> agents.Agent[Any]:
    """Return an agent with two guardrails side by side, which ask the same agent."""

    def respond(call: Any) -> Any:
        text = call.input[-1]["content"]
        asked.append(text)
        return [assistant_message(f"about {text}")]

    checker = agents.Agent(
        name="checker", model=ScriptedModel([ModelStep.respond(respond) for _ in range(9)])
    )
    verdicts: list[tuple[str, str]] = []

    def guardrail(name: str, delay: float) -> Any:
        async def check(context: Any, agent: Any, given: Any) -> agents.GuardrailFunctionOutput:
            await asyncio.sleep(delay)
            result = await agents.Runner.run(checker, name)
            verdicts.append((name, result.final_output))
            return agents.GuardrailFunctionOutput(None, tripwire_triggered=False)

        return agents.InputGuardrail(guardrail_function=check, name=name)

    made = agents.Agent(
        name="guarded",
        model=ScriptedModel([ConnectionError("away"), [assistant_message("done")]]),
        input_guardrails=[guardrail("A", first_delay), guardrail("B", 0.1)],
    )
    vars(made)["verdicts"] = verdicts
    return made


def test_guardrails_that_run_the_same_agent_get_their_own_results(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays, asked, made = iter([0.2, 0.0, 0.0]), [], []

    def factory() -> agents.Agent[Any]:
        made.append(guarded_agent(next(delays), asked))
        return made[-1]

    monkeypatch.setitem(registry._registry.registered, "guarded", factory)
    run = pending(user)
    AgentRun.objects.filter(pk=run.pk).update(agent_key="guarded")
    for _ in range(2):
        executor.execute(str(run.pk))
    verdicts = [verdict for agent in made for verdict in vars(agent)["verdicts"]]
    assert set(verdicts) <= {("A", "about A"), ("B", "about B")}
    run.refresh_from_db()
    assert len(made) == run.attempt == 2


def test_a_run_cancelled_in_the_queue_adds_nothing_to_its_session(user: User) -> None:
    session = make_session(user)
    first, second = pending(user, session), pending(user, session)
    claim(first)
    cancel_agent_run(second)
    assert said_by(first) == []
    lifecycle.cancel(first)
    assert said_by(first) == [("user", "hi")]


def test_items_added_during_a_run_are_not_in_the_history_of_its_next_attempt(user: User) -> None:
    session = make_session(user)
    session_items.append_items(session, [{"role": "user", "content": "before"}])
    run = pending(user, session)
    claim(run)
    late = AgentSessionItem.objects.create(
        session=session, sequence=99, payload={"role": "user", "content": "late"}
    )
    AgentSessionItem.objects.filter(pk=late.pk).update(created_at=Now() + timedelta(minutes=1))
    again = AgentRun.objects.select_related("session").get(pk=run.pk)
    again.attempt = 2
    assert [item["content"] for item in sessions.RunHistory(Attempt(again))._read()] == ["before"]


def test_an_error_with_a_lone_surrogate_is_stored(user: User) -> None:
    run = pending(user)
    lifecycle.fail(claim(run), lifecycle.Failure("internal", ValueError("half \ud83d\0")))
    run.refresh_from_db()
    assert (run.status, "half" in run.error_detail) == ("failed", True)


@pytest.mark.parametrize("metadata", [{"max_attempts": "3"}, {"max_attempts": -1}, [], None])
def test_invalid_metadata_does_not_prevent_recovery(user: User, metadata: Any) -> None:
    odd, plain = (claim(pending(user)).run for _ in range(2))
    if metadata is not None:
        AgentRun.objects.filter(pk=odd.pk).update(metadata=metadata)
    lose(odd)
    lose(plain)
    assert recovery.sweep("requeue").requeued == 2


def test_saving_a_run_writes_only_the_hosts_columns(user: User) -> None:
    run = claim(pending(user)).run
    lifecycle.cancel(AgentRun.objects.get(pk=run.pk))
    run.metadata["seen"] = True
    run.save()
    run.refresh_from_db()
    assert (run.status, run.metadata["seen"]) == ("cancelled", True)


def test_a_stale_slot_does_not_block_other_runs(user: User) -> None:
    with override_settings(AGENTIC_DJANGO_CONCURRENCY_LIMIT=1):
        first = claim(pending(user))
    lifecycle.complete([lifecycle.Completion(first, "done", [], {})])
    assert RunSlot.objects.count() == 1
    with override_settings(AGENTIC_DJANGO_CONCURRENCY_LIMIT=1):
        claim(pending(user))


def test_a_retry_consumes_the_rate_limit(client: Client, user: User) -> None:
    run = make_run(user, status="failed")
    with override_settings(AGENTIC_DJANGO_RATE_LIMIT="1/h"):
        answers = []
        for _ in range(2):
            AgentRun.objects.filter(pk=run.pk).update(status="failed")
            answers.append(client.post(f"/agents/runs/{run.pk}/retry/").status_code)
    assert answers == [200, 429]


@pytest.mark.parametrize("key", ["order 1042", "é", "", "x" * 256, "a\n"])
def test_a_session_key_that_does_not_fit_a_url_is_refused(user: User, key: str) -> None:
    with pytest.raises(BadInput, match="session_key"):
        AgentSession.objects.create(owner=user, session_key=key)


@pytest.mark.parametrize("charset", ["undefined", "idna", "nonsense"])
def test_an_odd_charset_of_a_form_is_a_bad_request(client: Client, charset: str) -> None:
    kind = f"multipart/form-data; boundary=B; charset={charset}"
    response = client.generic("POST", "/agents/runs/", b"--B--\r\n", content_type=kind)
    assert 400 <= response.status_code < 500


def test_an_agent_as_a_tool_cannot_be_marked_as_at_most_once() -> None:
    tool = agents.Agent(name="sub").as_tool("sub", "A sub-agent.")
    with pytest.raises(BadSetting, match="Mark the tools of that agent"):
        at_most_once(tool)


@pytest.mark.django_db(transaction=True)
def test_a_run_whose_task_died_before_the_claim_is_enqueued_again(
    user: User, use_tasks: Any
) -> None:
    use_tasks("database")
    from django_tasks_db.models import DBTaskResult

    run = submit_agent_run(owner=user, input_payload="hi", agent_key="echo")
    process.stop()  # Its thread would be faster now and then.
    DBTaskResult.objects.update(status="RUNNING")
    AgentRun.objects.filter(pk=run.pk).update(enqueued_at=Now() - timedelta(hours=5))
    assert recovery.sweep().enqueued == 1
