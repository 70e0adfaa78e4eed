"""Runs on the provider's own client, over real HTTP, against a local OpenAI-compatible server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from agents import function_tool
from django.contrib.auth.models import Group, User
from django.test import Client

from agentic_django.engine import session_items
from agentic_django.exceptions import MESSAGES
from agentic_django.models import AgentRun, StepCheckpoint
from agentic_django.services import cancel_agent_run, retry_agent_run, submit_agent_run
from tests.support.openai_server import Call, Cut, Failure, Hang, OpenAIServer, Reply, StreamError
from tests.support.processes import wait_until

pytestmark = pytest.mark.django_db(transaction=True)

CLIENTS_TRIES = 3
"""How often the provider's client asks before it gives up, and it is our turn."""


def submit(user: User, text: str, agent_key: str = "http", **options: Any) -> AgentRun:
    """Submit a run; under the Immediate backend it has ended then."""
    run = submit_agent_run(owner=user, input_payload=text, agent_key=agent_key, **options)
    run.refresh_from_db()
    return run


def finished(run: AgentRun) -> bool:
    run.refresh_from_db()
    return run.is_finished


def told(run: AgentRun) -> list[tuple[int, str]]:
    """Return the run's events."""
    return list(run.events.order_by("sequence").values_list("sequence", "event_type"))


def steps(run: AgentRun) -> list[tuple[str, str, int]]:
    """Return what is recorded of the run: kind, name, and by which attempt."""
    rows = StepCheckpoint.objects.filter(run=run).order_by("pk")
    return list(rows.values_list("kind", "name", "attempt"))


def nulls(value: Any, where: str = "") -> Iterator[str]:
    """Yield where a null stands in JSON."""
    if value is None:
        yield where
    pairs = value.items() if isinstance(value, dict) else ()
    for name, each in enumerate(value) if isinstance(value, list) else pairs:
        yield from nulls(each, f"{where}.{name}")


@pytest.fixture
def calls(scripted: Callable[..., Any]) -> list[str]:
    """What the tool of the agent ``counted`` was called with; its model is the provider's."""
    made: list[str] = []

    @function_tool
    def add_group(name: str) -> str:
        """Create a group."""
        made.append(name)
        Group.objects.create(name=name)
        return f"{Group.objects.count()} groups"

    scripted("counted", model="gpt-5-mini", tools=[add_group])
    return made


# A run and its conversation


def test_a_streamed_run_calls_a_tool_and_answers(user: User, openai_server: OpenAIServer) -> None:
    openai_server.enqueue(
        Reply(Call("add_group", {"name": "staff"}, "call-1"), usage=(30, 7)),
        Reply("There is one group.", usage=(50, 9)),
    )
    run = submit(user, "Add the group staff.", session_key="talk")
    assert (run.status, run.final_output) == ("completed", "There is one group."), run.error_detail
    assert Group.objects.get().name == "staff"
    assert told(run) == [
        (1, "run.started"),
        (2, "agent.updated"),
        (3, "tool.called"),
        (4, "tool.output"),
        (5, "message"),
        (6, "run.completed"),
    ]
    output = run.events.get(event_type="tool.output").payload
    assert (output["call_id"], output["output"]) == ("call-1", "1 groups")
    assert run.usage == {
        "requests": 2,
        "input_tokens": 80,
        "output_tokens": 16,
        "total_tokens": 96,
        "cost_usd": pytest.approx(0.000052),
    }
    assert steps(run) == [("model", "http", 1), ("tool", "add_group", 1), ("model", "http", 1)]


def test_the_request_asks_for_a_stream_and_has_the_tools(
    user: User, openai_server: OpenAIServer
) -> None:
    openai_server.enqueue("Hello to you.")
    submit(user, "Hello")
    (body,) = openai_server.requests
    assert body["stream"] is True
    assert body["model"] == "gpt-5-mini"
    assert body["instructions"] == "Group."
    assert body["input"] == [{"role": "user", "content": "Hello"}]
    assert [tool["name"] for tool in body["tools"]] == ["add_group"]
    assert openai_server.headers[0]["authorization"] == "Bearer sk-test"


def test_the_next_turn_sends_the_whole_history_without_nulls(
    user: User, openai_server: OpenAIServer
) -> None:
    openai_server.enqueue(
        Call("add_group", {"name": "staff"}, "call-1"), "There is one group.", "You are welcome."
    )
    submit(user, "Add the group staff.", session_key="talk")
    run = submit(user, "Thank you.", session_key="talk")
    assert run.final_output == "You are welcome.", run.error_detail
    asked = openai_server.requests[-1]["input"]
    kinds = [item.get("type", item.get("role")) for item in asked]
    assert kinds == ["user", "function_call", "function_call_output", "message", "user"]
    assert asked[0]["content"] == "Add the group staff."
    assert (asked[1]["call_id"], asked[1]["arguments"]) == ("call-1", '{"name": "staff"}')
    assert (asked[2]["call_id"], asked[2]["output"]) == ("call-1", "1 groups")
    assert asked[3]["content"][0]["text"] == "There is one group."
    assert asked[4] == {"role": "user", "content": "Thank you."}
    for number, body in enumerate(openai_server.requests):
        assert list(nulls(body["input"], f"{number}")) == []


def test_the_conversation_stores_the_items_as_they_were_sent(
    user: User, openai_server: OpenAIServer
) -> None:
    openai_server.enqueue(Call("add_group", {"name": "staff"}), "Done.", "You are welcome.")
    submit(user, "Add the group staff.", session_key="talk")
    run = submit(user, "Thank you.", session_key="talk")
    assert run.session is not None
    items = session_items.read_items(run.session)
    assert items[:-1] == openai_server.requests[-1]["input"]
    assert items[-1]["content"][0]["text"] == "You are welcome."
    assert list(nulls(items)) == []


def test_outputs_of_parallel_calls_are_sent_together(
    user: User, openai_server: OpenAIServer, calls: list[str]
) -> None:
    both = [Call("add_group", {"name": name}, name) for name in ("a", "b")]
    openai_server.enqueue(Reply(*both), "Both.")
    run = submit(user, "Add a and b.", "counted")
    assert run.final_output == "Both.", run.error_detail
    assert sorted(calls) == ["a", "b"]
    outputs = [item for item in openai_server.requests[1]["input"] if "output" in item]
    assert [item["call_id"] for item in outputs] == ["a", "b"]


# What goes wrong


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_provider_is_retried_and_no_call_is_repeated(
    user: User, openai_server: OpenAIServer, calls: list[str], status: int
) -> None:
    busy = Failure(status, "Slow down.", "rate_limit_exceeded", retry_after=0.01)
    openai_server.enqueue(
        Call("add_group", {"name": "staff"}), *[busy] * CLIENTS_TRIES, "There is one group."
    )
    run = submit(user, "Add the group staff.", "counted", session_key="talk")
    assert (run.status, run.final_output) == ("completed", "There is one group."), run.error_detail
    assert run.attempt == 2
    assert calls == ["staff"]
    assert steps(run) == [
        ("model", "counted", 1),
        ("tool", "add_group", 1),
        ("model", "counted", 2),
    ]
    first, *repeated = [body["input"] for body in openai_server.requests]
    assert len(first) == 1
    # Each later request is that of the second turn, the one of the new attempt included.
    assert repeated == [repeated[0]] * (CLIENTS_TRIES + 1)
    assert [item["output"] for item in repeated[0] if "output" in item] == ["1 groups"]
    assert run.events.get(event_type="run.retrying").payload["reason"] == "provider_busy"
    assert run.usage["requests"] == 2
    assert run.session is not None
    assert len(session_items.read_items(run.session)) == 4


def test_a_long_retry_after_is_waited_in_the_queue(
    user: User, openai_server: OpenAIServer, use_tasks: Callable[[str], None]
) -> None:
    use_tasks("threads")
    # The client itself waits for two minutes at most.
    openai_server.enqueue(Failure(429, "Slow down.", "rate_limit_exceeded", retry_after=180))
    run = submit(user, "Hello")
    wait_until(lambda: told(run)[-1:] == [(2, "run.retrying")])
    run.refresh_from_db()
    assert run.status == "pending"
    assert run.events.get(sequence=2).payload["delay_seconds"] == 180
    assert run.available_at is not None
    assert (run.available_at - run.updated_at).total_seconds() == pytest.approx(180, abs=1)
    assert len(openai_server.requests) == 1
    cancel_agent_run(run)


def test_a_stream_that_breaks_is_requested_again(
    user: User, openai_server: OpenAIServer, calls: list[str]
) -> None:
    broken = Cut(Reply("A long answer that never"), events=6)
    openai_server.enqueue(Call("add_group", {"name": "staff"}), broken, "There is one group.")
    run = submit(user, "Add the group staff.", "counted")
    assert (run.status, run.final_output) == ("completed", "There is one group."), run.error_detail
    assert run.attempt == 2
    assert calls == ["staff"]
    assert [kind for _, kind in told(run)].count("message") == 1
    assert run.events.get(event_type="run.retrying").payload["reason"] == "provider_unreachable"


def test_a_provider_that_stays_busy_fails_the_run(
    user: User, openai_server: OpenAIServer, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_MAX_ATTEMPTS = 2
    openai_server.answer_with(lambda body: Failure(429, "Slow.", "rate_limit", retry_after=0.01))
    run = submit(user, "Hello")
    assert (run.status, run.error_code) == ("failed", "provider_busy")
    assert run.error == "The model is busy. Retry in a few minutes."
    assert len(openai_server.requests) == 2 * CLIENTS_TRIES


@pytest.mark.parametrize(
    ("status", "code"),
    [(401, "invalid_api_key"), (402, "x"), (404, "model_not_found"), (429, "insufficient_quota")],
)
def test_a_refused_account_fails_the_run_after_one_attempt(
    user: User, client: Client, openai_server: OpenAIServer, settings: Any, status: int, code: str
) -> None:
    refused = Failure(status, "The secret of the provider", code, retry_after=0.01)
    openai_server.answer_with(lambda body: refused)
    run = submit(user, "Hello")
    assert (run.status, run.error_code, run.attempt) == ("failed", "not_configured", 1)
    shown = client.get(f"/agents/runs/{run.pk}/", headers={"Accept": "text/html"}).text
    assert "access to the model provider does not work" in shown
    assert "Inform the operator of this site." in shown
    assert "secret" not in shown
    settings.DEBUG = True
    shown = client.get(f"/agents/runs/{run.pk}/", headers={"Accept": "text/html"}).text
    assert "The secret of the provider" in shown


BUSY_WITHIN_A_STREAM = [
    StreamError({"error": {"message": "Overloaded", "type": "overloaded_error"}}),
    StreamError({"error": {"message": "Bad gateway", "code": 502}}),
    StreamError({"error": {"message": "Something broke"}}),
    StreamError({"type": "error", "code": "rate_limit_exceeded", "message": "Slow down."}),
    StreamError({"type": "error", "code": None, "message": "Something broke."}),
    Reply("A part", status="failed", error={"code": "server_error", "message": "Sorry."}),
    Reply("A part", status="failed", error={"code": "rate_limit_exceeded", "message": "Slow."}),
    Reply("A part", status="failed", error=None),
]


@pytest.mark.parametrize("answer", BUSY_WITHIN_A_STREAM, ids=repr)
def test_an_error_within_a_stream_is_retried_and_no_call_is_repeated(
    user: User, openai_server: OpenAIServer, calls: list[str], answer: Any
) -> None:
    openai_server.enqueue(Call("add_group", {"name": "staff"}), answer, "There is one group.")
    run = submit(user, "Add the group staff.", "counted", session_key="talk")
    assert (run.status, run.final_output) == ("completed", "There is one group."), run.error_detail
    assert (run.attempt, calls) == (2, ["staff"])
    assert run.events.get(event_type="run.retrying").payload["reason"] == "provider_busy"
    assert [kind for _, kind in told(run)].count("message") == 1


def test_a_refusal_within_a_stream_is_not_retried(user: User, openai_server: OpenAIServer) -> None:
    error = {"code": "invalid_prompt", "message": "No."}
    openai_server.enqueue(Reply("A part", status="failed", error=error))
    run = submit(user, "Hello")
    assert (run.status, run.error_code, run.attempt) == ("failed", "provider_refused", 1)


@pytest.mark.parametrize(
    ("reason", "code"),
    [("max_output_tokens", "answer_cut_off"), ("content_filter", "answer_withheld")],
)
def test_an_incomplete_answer_keeps_its_text_and_is_billed(
    user: User, client: Client, openai_server: OpenAIServer, reason: str, code: str
) -> None:
    cut = Reply(
        "Forty words",
        Call("add_group", {"name": "a"}),
        usage=(30, 40),
        status="incomplete",
        incomplete_details={"reason": reason},
    )
    openai_server.enqueue(cut, "All of it.")
    run = submit(user, "Hello", session_key="talk")
    assert (run.status, run.error_code, run.attempt) == ("failed", code, 1), run.error_detail
    assert (run.usage["requests"], run.usage["total_tokens"]) == (1, 70)
    assert run.events.get(event_type="message").payload["text"] == "Forty words"
    shown = client.get(f"/agents/runs/{run.pk}/", headers={"Accept": "text/html"}).text
    assert "Forty words" in shown
    assert str(MESSAGES[code]) in shown
    assert run.session is not None
    asked, said = session_items.read_items(run.session)
    assert (asked["content"], said["content"][0]["text"]) == ("Hello", "Forty words")
    later = submit(user, "And now?", session_key="talk")
    assert later.final_output == "All of it.", later.error_detail


def test_a_retry_asks_anew_for_an_answer_that_was_cut_off(
    user: User, openai_server: OpenAIServer
) -> None:
    cut = Reply("A", status="incomplete", incomplete_details={"reason": "max_output_tokens"})
    openai_server.enqueue(cut, cut, "All of it.")
    run = submit(user, "Hello")
    for status in ("failed", "completed"):
        retry_agent_run(run)
        run.refresh_from_db()
        assert run.status == status, run.error_detail
    assert run.final_output == "All of it."
    assert (run.usage["requests"], run.usage["total_tokens"]) == (3, 45)


@pytest.mark.parametrize(
    ("code", "message"),
    [("context_length_exceeded", "no"), ("x", "This model's maximum context length is 8 tokens.")],
)
def test_an_input_that_is_too_long_fails_with_its_own_advice(
    user: User, client: Client, openai_server: OpenAIServer, code: str, message: str
) -> None:
    openai_server.enqueue(Failure(400, message, code))
    run = submit(user, "Hello")
    assert (run.status, run.error_code, run.attempt) == ("failed", "input_too_long", 1)
    shown = client.get(f"/agents/runs/{run.pk}/", headers={"Accept": "text/html"}).text
    assert "Start a new conversation" in shown


@pytest.mark.parametrize("status", [400, 422])
def test_a_refusal_fails_the_run_at_once_with_a_plain_message(
    user: User, client: Client, openai_server: OpenAIServer, status: int
) -> None:
    openai_server.enqueue(Failure(status, "The secret of the provider", "invalid_request_error"))
    run = submit(user, "Hello", session_key="talk")
    assert len(openai_server.requests) == 1
    assert (run.status, run.error_code, run.attempt) == ("failed", "provider_refused", 1)
    assert run.error == "The model provider rejected the request."
    assert "The secret of the provider" in run.error_detail
    for accept in ("application/json", "text/html"):
        shown = client.get(f"/agents/runs/{run.pk}/", headers={"Accept": accept}).text
        assert "The model provider rejected the request." in shown
        assert "secret" not in shown
    assert run.session is not None
    assert session_items.read_items(run.session) == [{"role": "user", "content": "Hello"}]


# What never ends


@pytest.mark.parametrize("events", [0, 6])
def test_a_hanging_model_call_ends_within_two_seconds_of_a_cancellation(
    user: User, openai_server: OpenAIServer, use_tasks: Callable[[str], None], events: int
) -> None:
    use_tasks("threads")
    openai_server.enqueue(Hang(Reply("A long answer"), events=events), "I am back.")
    run = submit(user, "Hello", session_key="talk")
    wait_until(lambda: openai_server.requests)
    time.sleep(0.2)  # The stream, if there is one, stands still now.
    began = time.monotonic()
    cancel_agent_run(run)
    assert openai_server.wait_for_disconnect()
    assert time.monotonic() - began < 2
    run.refresh_from_db()
    assert run.status == "cancelled"
    assert [kind for _, kind in told(run)] == ["run.started", "run.cancelled"]
    later = submit(user, "Are you there?", session_key="talk")
    wait_until(lambda: finished(later))
    assert later.final_output == "I am back."
    said = [item["content"] for item in openai_server.requests[-1]["input"]]
    assert said == ["Hello", "Are you there?"]


def test_a_hanging_model_call_ends_at_the_timeout_of_the_run(
    user: User, openai_server: OpenAIServer, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_RUN_TIMEOUT_SECONDS = 0.5
    openai_server.enqueue(Hang(Reply("A long answer"), events=6))
    run = submit(user, "Hello")
    assert (run.status, run.error_code) == ("timed_out", "timed_out")
    assert run.error == "The run timed out."
    assert openai_server.wait_for_disconnect(2)
