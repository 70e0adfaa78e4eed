"""How runs end, are tried again, and what they leave in their conversations."""

from __future__ import annotations

import sys
from collections.abc import Callable
from datetime import timedelta
from itertools import chain
from typing import Any

import pytest
from agents import Agent, function_tool
from agents.testing import ModelStep, assistant_message, function_call
from agents.tool import ToolOutputImage
from django.contrib.auth.models import User
from django.db import OperationalError
from django.db.models.functions import Now

from agentic_django.engine import journal_entries, lifecycle, recovery, retries, session_items
from agentic_django.engine.attempt import Attempt
from agentic_django.engine.lifecycle import Failure
from agentic_django.engine.unfinished_turns import UNFINISHED
from agentic_django.exceptions import Conflict
from agentic_django.models import AgentRun, AgentSession, StepCheckpoint
from agentic_django.services import cancel_agent_run, enqueue_agent_run, retry_agent_run
from tests.support import agents as test_agents
from tests.support.agents import USAGE, call_tool
from tests.support.attempts import AWAY, attempt, finish, lose, numbered, payloads, recorded
from tests.support.processes import wait_until
from tests.support.rows import make_run, make_session

pytestmark = pytest.mark.django_db(transaction=True)

type Make = Callable[..., AgentRun]


@pytest.fixture
def make(user: User, no_queue: None) -> Make:
    """Make a pending run in a conversation (a fresh one, unless it is given)."""

    def make(given: Any = "Hello", session: AgentSession | None = None, **columns: Any) -> AgentRun:
        session = session or make_session(user)
        columns = {"agent_key": "default", "input_payload": given, **columns}
        return AgentRun.objects.create(session=session, **columns)

    return make


def items(run: AgentRun) -> list[Any]:
    """Return the items of a run's conversation."""
    assert run.session is not None
    return session_items.read_items(run.session)


def tool(name: str, act: Callable[[], Any]) -> Any:
    """Return a tool that does something of the test's."""

    def call() -> Any:
        """Act."""
        return act()

    return function_tool(call, name_override=name, failure_error_function=None)


def looking(looks: list[int]) -> Callable[[], Any]:
    def act() -> str:
        looks.append(1)
        return "sunny"

    return act


def raising(error: Exception) -> Callable[[], Any]:
    def act() -> Any:
        raise error

    return act


# What a run leaves


def two_calls() -> ModelStep:
    """Return a response that calls two tools at once."""
    calls = [function_call("look", {}, call_id="c1"), function_call("act", {}, call_id="c2")]
    return ModelStep(output=calls, usage=USAGE)


def once_recorded(name: str, act: Callable[[], Any]) -> Callable[[], Any]:
    """Return what acts once another tool's result is recorded, though it occupies the thread."""

    def acting() -> Any:
        wait_until(lambda: StepCheckpoint.objects.filter(name=name).exists(), what=name)
        return act()

    return acting


def end_by_cancel(run: AgentRun) -> Any:
    return lambda: cancel_agent_run(AgentRun.objects.get(pk=run.pk))


def end_by_failure(run: AgentRun) -> Any:
    return raising(ValueError("a mistake"))


def end_by_loss(run: AgentRun) -> Any:
    def act() -> None:
        row = AgentRun.objects.get(pk=run.pk)
        AgentRun.objects.filter(pk=run.pk).update(lease_ends_at=Now() - timedelta(seconds=1))
        recovery.sweep("fail")
        row.refresh_from_db()
        assert row.status == "failed"

    return act


def end_by_time_out(run: AgentRun) -> Any:
    def act() -> None:
        row = AgentRun.objects.get(pk=run.pk)
        lifecycle.fail(Attempt(row), Failure("timed_out"))

    return act


@pytest.mark.parametrize(
    ("end", "status"),
    [
        (end_by_cancel, "cancelled"),
        (end_by_failure, "failed"),
        (end_by_loss, "failed"),
        (end_by_time_out, "timed_out"),
    ],
)
def test_an_unfinished_run_adds_a_history_that_the_next_run_can_use(
    scripted: Any, make: Make, end: Any, status: str
) -> None:
    run = make("Is it sunny?")
    tools = [tool("look", lambda: "sunny"), tool("act", once_recorded("look", end(run)))]
    model = scripted("default", two_calls(), "Next.", tools=tools)
    attempt(run)
    assert run.status == status
    assert numbered(run)[-1] == f"run.{status}"
    assert run.usage == {
        "requests": 1,
        "input_tokens": 10,
        "output_tokens": 5,
        "total_tokens": 15,
    }
    left = items(run)
    assert left[0] == {"role": "user", "content": "Is it sunny?"}
    outputs = {item["call_id"]: item["output"] for item in left if "output" in item}
    assert outputs == {"c1": "sunny", "c2": UNFINISHED}
    assert [item.get("type") for item in left] == [
        None,
        "function_call",
        "function_call",
        "function_call_output",
        "function_call_output",
    ]
    following = make("And now?", run.session)
    assert finish(following).final_output == "Next."
    assert model.calls[1].input == [*left, {"role": "user", "content": "And now?"}]


@pytest.mark.parametrize(
    ("value", "output"),
    [
        ("sunny", "sunny"),
        (21, "21"),
        (None, "None"),
        ([], "[]"),
        ({"a": 1}, "{'a': 1}"),
        (
            ToolOutputImage(image_url="https://example.com/a.png"),
            [{"type": "input_image", "image_url": "https://example.com/a.png"}],
        ),
    ],
)
def test_an_unfinished_run_adds_results_like_a_completed_one(
    scripted: Any, make: Make, value: Any, output: Any
) -> None:
    looked = tool("look", lambda: value)
    scripted("default", call_tool("look"), ValueError("a mistake"), tools=[looked])
    failed = attempt(make())
    scripted("default", call_tool("look"), "Done.", tools=[looked])
    completed = attempt(make())
    assert items(failed) == items(completed)[:3]
    assert items(failed)[2]["output"] == output


def test_an_unfinished_run_adds_its_handoffs(scripted: Any, make: Make) -> None:
    other = test_agents.echo()
    other.name = "other"
    other.model = test_agents.answering(lambda call: ValueError("a mistake"))
    turn = call_tool("transfer_to_other", call_id="h1")
    scripted("default", turn, handoffs=[other])
    assert items(attempt(make()))[-1]["output"] == UNFINISHED
    other.model = test_agents.answering(_calls_once)
    other.tools = [tool("look", raising(ValueError("a mistake")))]
    scripted("default", turn, handoffs=[other])
    outputs = [item["output"] for item in items(attempt(make())) if "output" in item]
    assert outputs == ['{"assistant": "other"}', UNFINISHED]


def _calls_once(call: Any) -> Any:
    return call_tool("look", call_id="c9")


def test_an_unfinished_run_does_not_add_messages_of_nested_agents(
    scripted: Any, make: Make
) -> None:
    inner = test_agents.echo()
    ask = inner.as_tool(tool_name="ask", tool_description="Ask.")
    step = call_tool("ask", input="Hello inside")
    scripted("default", step, ValueError("a mistake"), tools=[ask])
    left = items(attempt(make()))
    assert len(left) == 3
    assert left[2]["output"] == "You said: Hello inside"


def test_a_run_that_started_adds_its_input(scripted: Any, make: Make) -> None:
    scripted("default", AWAY)
    run = make([{"role": "user", "content": "One"}, {"role": "user", "content": "Two"}])
    assert attempt(run).status == "pending"
    cancel_agent_run(run)
    assert [item["content"] for item in items(run)] == ["One", "Two"]


def test_a_run_that_never_started_adds_nothing(make: Make) -> None:
    """What stands before it has yet to end, and would come behind it in the history."""
    run = make()
    cancel_agent_run(run)
    assert items(run) == []


@pytest.mark.parametrize("status", ["completed", "failed", "cancelled", "timed_out"])
def test_a_run_that_has_ended_cannot_be_cancelled(user: User, status: str) -> None:
    with pytest.raises(Conflict):
        cancel_agent_run(make_run(user, status))


# Trying again, because a person wants that


def test_a_retry_continues_after_the_recorded_results(scripted: Any, make: Make) -> None:
    looks: list[int] = []
    looked = tool("look", looking(looks))
    scripted("default", call_tool("look"), ValueError("a mistake"), "Done.", tools=[looked])
    run = attempt(make())
    assert run.status == "failed"
    retry_agent_run(run, by="ada")
    assert run.status == "pending"
    assert (run.error, run.error_code, run.error_detail) == ("", "", "")
    assert items(run) == []
    assert finish(run).final_output == "Done."
    assert len(looks) == 1
    assert run.generation == 1
    assert len(items(run)) == 4
    assert numbered(run).count("message") == 1
    assert payloads(run, "run.retrying")[0]["reason"] == "by ada"


def test_a_fresh_retry_repeats_all_calls_and_bills_the_earlier_ones_too(
    scripted: Any, make: Make
) -> None:
    looks: list[int] = []
    looked = tool("look", looking(looks))
    steps = [call_tool("look"), ValueError("a mistake"), call_tool("look"), "Done."]
    scripted("default", *steps, tools=[looked])
    run = attempt(make())
    retry_agent_run(run, start_again=True)
    assert finish(run).final_output == "Done."
    assert run.generation == 2
    assert len(looks) == 2
    rows = StepCheckpoint.objects.filter(run=run).order_by("id")
    assert [row.generation for row in rows] == [1, 1, 2, 2, 2]
    assert len(items(run)) == 4
    assert run.usage["total_tokens"] == 3 * 15


def test_only_the_last_run_of_a_conversation_can_be_retried(scripted: Any, make: Make) -> None:
    scripted("default", ValueError("a mistake"), "Done.")
    run = attempt(make())
    following = finish(make("Next", run.session))
    with pytest.raises(Conflict, match="last run"):
        retry_agent_run(run)
    assert following.status == "completed"
    with pytest.raises(Conflict):
        retry_agent_run(following)


# Trying again by itself


def test_a_transient_failure_is_retried_a_limited_number_of_times(
    scripted: Any, make: Make
) -> None:
    model = scripted("default", *[AWAY] * 9)
    run = finish(make())
    assert (run.status, run.error_code) == ("failed", "provider_unreachable")
    assert len(model.calls) == run.attempt == 4
    assert numbered(run) == [*["run.started", "run.retrying"] * 3, "run.started", "run.failed"]


def test_attempts_that_record_results_do_not_count_as_failures(scripted: Any, make: Make) -> None:
    steps = [(call_tool("look", call_id=f"c{n}"), AWAY, AWAY, AWAY) for n in range(3)]
    looked = tool("look", lambda: "sunny")
    scripted("default", *chain.from_iterable(steps), "Done.", tools=[looked])
    run = finish(make())
    assert run.final_output == "Done."
    assert run.attempt == 10


@pytest.mark.parametrize(
    ("setting", "metadata", "attempts"),
    [
        (2, {}, 2),
        ({"default": 3, "*": 1}, {}, 3),
        ({"other": 3, "*": 1}, {}, 1),
        ({"other": 3}, {}, 4),
        (2, {"max_attempts": 5}, 5),
    ],
)
def test_the_number_of_attempts_is_set_for_all_for_an_agent_or_for_a_run(
    scripted: Any, make: Make, settings: Any, setting: Any, metadata: Any, attempts: int
) -> None:
    settings.AGENTIC_DJANGO_MAX_ATTEMPTS = setting
    scripted("default", *[AWAY] * 9)
    assert finish(make(metadata=metadata)).attempt == attempts


def test_a_run_in_back_off_keeps_its_position(
    scripted: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retries, "backoff", lambda failures: 30.0)
    scripted("default", AWAY, "Done.", "Next.")
    run = attempt(make())
    following = make("Next", run.session)
    assert attempt(run).status == "pending"
    assert attempt(following).status == "pending"
    assert recovery.sweep().enqueued == 0
    assert payloads(run, "run.retrying")[0] == {
        "attempt": 1,
        "reason": "provider_unreachable",
        "delay_seconds": 30.0,
    }
    AgentRun.objects.filter(pk=run.pk).update(available_at=Now())
    assert recovery.sweep().enqueued == 1
    assert attempt(run).final_output == "Done."
    assert attempt(following).final_output == "Next."


def test_delays_grow_and_differ() -> None:
    for failures, middle in enumerate([1, 2, 4, 8, 16, 32, 60, 60, 60]):
        found = [retries.backoff(failures) for _ in range(200)]
        assert middle * 0.5 <= min(found) < middle * 0.7
        assert middle * 1.3 < max(found) <= middle * 1.5


# Lost


def test_a_run_orphaned_too_often_fails(make: Make, scripted: Any) -> None:
    run = make()
    for _ in range(3):
        assert lose(run).status == "pending"
    assert lose(run).status == "failed"
    assert run.error_code == "lost"
    assert run.attempt == 4
    assert items(run) == [{"role": "user", "content": "Hello"}]
    retry_agent_run(run)
    scripted("default", "Done.")
    assert finish(run).final_output == "Done."


def test_the_next_run_starts_when_an_orphaned_one_has_failed(make: Make, scripted: Any) -> None:
    scripted("default", "Done.")
    run = make()
    following = make("Next", run.session)
    for _ in range(4):
        lose(run)
    assert attempt(following).final_output == "Done."


# The database


def fail_once(monkeypatch: pytest.MonkeyPatch, owner: Any, name: str) -> None:
    """Let a function raise a database error at its first call."""
    work = getattr(owner, name)
    failed: list[int] = []

    def act(*args: Any, **kwargs: Any) -> Any:
        if not failed:
            failed.append(1)
            raise OperationalError("The database is away.")
        return work(*args, **kwargs)

    monkeypatch.setattr(owner, name, act)


def test_a_call_whose_recording_failed_is_made_again_by_the_next_attempt(
    scripted: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[int] = []
    looked = tool("look", looking(looks))
    scripted("default", call_tool("look"), call_tool("look"), "Done.", tools=[looked])
    fail_once(monkeypatch, journal_entries, "save_entries")
    run = finish(make())
    assert run.final_output == "Done."
    assert run.attempt == 2
    assert numbered(run) == [
        "run.started",
        "run.retrying",
        "run.started",
        "agent.updated",
        "tool.called",
        "tool.output",
        "message",
        "run.completed",
    ]
    assert len(looks) == 1


def test_a_completion_that_failed_is_written_by_the_attempt_after_the_lease(
    scripted: Any, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = scripted("default", "Done.")
    fail_once(monkeypatch, session_items, "append_run_items")
    run = make()
    with pytest.raises(OperationalError):
        attempt(run)
    run.refresh_from_db()
    assert run.status == "running"
    AgentRun.objects.update(lease_ends_at=Now() - timedelta(seconds=1))
    assert recovery.sweep().requeued == 1
    assert finish(run).final_output == "Done."
    assert len(model.calls) == 1
    assert numbered(run).count("run.completed") == numbered(run).count("message") == 1
    assert recorded(run) == [("model", "default")]


# Many


def test_many_queued_runs_of_one_conversation_execute_without_recursion(user: User) -> None:
    depths: list[int] = []

    def respond(call: Any) -> Any:
        return [assistant_message("Done.")]

    def factory() -> Any:
        frame, depth = sys._getframe(), 0
        while frame.f_back is not None:
            frame, depth = frame.f_back, depth + 1
        depths.append(depth)
        return Agent(name="deep", model=test_agents.answering(respond))

    test_agents.SCRIPTED["echo"] = factory
    try:
        session = make_session(user)
        line = [
            AgentRun.objects.create(session=session, agent_key="echo", input_payload=str(n))
            for n in range(40)
        ]
        enqueue_agent_run(line[0].pk)
    finally:
        test_agents.SCRIPTED.clear()
    assert set(AgentRun.objects.values_list("status", flat=True)) == {"completed"}
    assert len(set(depths[1:])) == 1
    ended = AgentRun.objects.order_by("finished_at").values_list("position", flat=True)
    assert list(ended) == list(range(1, 41))
    assert session.items.count() == 80
