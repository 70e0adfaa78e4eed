"""Events are written with their facts, in order, for the eyes they are meant for."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import transaction

from agentic_django import signals
from agentic_django.engine import events, fenced_writes, transitions
from agentic_django.engine.attempt import Attempt
from agentic_django.engine.events import EVENT_KINDS, EventType, events_after, new_event
from agentic_django.exceptions import NotSerializable
from agentic_django.models import AgentEvent, AgentRun, Visibility
from agentic_django.services import submit_agent_run
from tests.support.agents import add_group, call_tool
from tests.support.rows import make_events, make_run

ALL = tuple(Visibility)


@pytest.fixture
def submit(user: User, django_capture_on_commit_callbacks: Any) -> Any:
    """Submit a run and let it end, as Immediate does."""

    def work(agent_key: str = "echo", text: str = "Hello", **options: Any) -> AgentRun:
        with django_capture_on_commit_callbacks(execute=True):
            run = submit_agent_run(owner=user, input_payload=text, agent_key=agent_key, **options)
        run.refresh_from_db()
        return run

    return work


def types(run: AgentRun, *levels: str) -> list[str]:
    return [event.event_type for event in events_after(run, 0, limit=1000, levels=levels or ALL)]


# The table


def test_every_type_is_in_the_table() -> None:
    assert set(EVENT_KINDS) == set(EventType)


@pytest.mark.parametrize("kind", list(EventType))
def test_messages_tools_steps_progress_and_ends_are_for_the_user(kind: EventType) -> None:
    heads = ("run.", "message", "tool.", "step.", "progress.", "approval.")
    assert (EVENT_KINDS[kind].visibility == Visibility.USER) is kind.startswith(heads)


@pytest.mark.parametrize("kind", list(EventType))
def test_a_draft_takes_the_visibility_of_its_type(kind: EventType) -> None:
    assert new_event(kind).visibility == EVENT_KINDS[kind].visibility


@pytest.mark.parametrize("level", ALL)
def test_a_draft_may_be_given_another_visibility(level: str) -> None:
    assert new_event(EventType.MESSAGE, level, text="hi").visibility == level


def test_events_of_a_hosts_own_type_are_internal() -> None:
    assert new_event("shop.paid", amount=3) == events.Event("shop.paid", {"amount": 3}, "internal")


def test_a_draft_refuses_what_cannot_be_stored() -> None:
    with pytest.raises(NotSerializable, match=r"payload\.text"):
        new_event(EventType.MESSAGE, text=b"bytes")


@pytest.mark.parametrize("kind", list(EventType))
def test_without_events_only_those_of_transitions_are_written(
    kind: EventType, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_ENABLE_EVENTS = False
    of_transitions = {step.event for step in transitions.TRANSITIONS.values()}
    assert bool(events.enabled([new_event(kind)])) is (kind in of_transitions)


# What runs tell

pytestmark = pytest.mark.django_db


def test_a_run_tells_its_life(submit: Any) -> None:
    run = submit()
    told = types(run, "user")
    assert told == ["run.started", "message", "run.completed"]


def test_a_runs_end_has_the_output(submit: Any) -> None:
    run = submit()
    payload = AgentEvent.objects.get(run=run, event_type="run.completed").payload
    assert payload == {"output": "You said: Hello"}


def test_a_tools_call_and_output_are_told_in_order(submit: Any, scripted: Any) -> None:
    scripted("default", call_tool("add_group", name="a"), "Done.", tools=[add_group])
    run = submit("default")
    told = types(run, "user")
    assert told == ["run.started", "tool.called", "tool.output", "message", "run.completed"]
    called, output = AgentEvent.objects.filter(event_type__startswith="tool.").order_by("sequence")
    assert called.payload["tool"] == output.payload["tool"] == "add_group"
    assert called.payload["call_id"] == output.payload["call_id"] == "call-1"
    assert output.payload["output"] == "1 groups"


def test_each_event_carries_the_fields_of_its_type(submit: Any, scripted: Any) -> None:
    scripted("default", call_tool("add_group", name="a"), "Done.", tools=[add_group])
    submit("default")
    submit("broken")
    seen = AgentEvent.objects.all()
    assert {event.event_type for event in seen} >= {"run.failed", "tool.output", "message"}
    for event in seen:
        assert set(event.payload) == set(EVENT_KINDS[event.event_type].fields), event.event_type


def test_a_failure_is_told_safely(submit: Any) -> None:
    run = submit("broken", "the password is 123")
    event = AgentEvent.objects.get(run=run, event_type="run.failed")
    assert event.payload == {"error": run.error, "code": run.error_code}
    assert "123" not in str(event.payload)
    assert "123" in run.error_detail


def test_events_are_numbered_from_one_without_gaps(submit: Any, scripted: Any) -> None:
    scripted("default", call_tool("add_group", name="a"), "Done.", tools=[add_group])
    run = submit("default")
    numbers = list(run.events.order_by("sequence").values_list("sequence", flat=True))
    assert numbers == list(range(1, len(numbers) + 1))
    assert run.event_count == len(numbers)


def test_without_events_a_run_tells_only_its_own_life(submit: Any, settings: Any) -> None:
    settings.AGENTIC_DJANGO_ENABLE_EVENTS = False
    run = submit()
    assert types(run) == ["run.started", "run.completed"]
    assert run.status == "completed"
    assert run.event_count == 2


def test_text_that_databases_refuse_is_told(submit: Any, scripted: Any) -> None:
    scripted("default", "\x00 and \ud800")
    run = submit("default")
    assert run.final_output == "\x00 and \ud800"
    assert AgentEvent.objects.get(event_type="message").payload["text"] == "\x00 and \ud800"


# Reading


def test_events_are_read_after_a_number(user: User) -> None:
    run = make_run(user)
    make_events(run, 5)
    assert [e.sequence for e in events_after(run, 2, limit=2, levels=ALL)] == [3, 4]
    assert [e.sequence for e in events_after(run, 4, limit=9, levels=ALL)] == [5]
    assert events_after(run, 5, limit=9, levels=ALL) == []


@pytest.mark.parametrize(
    ("levels", "seen"),
    [
        (["user"], [1]),
        (["user", "debug"], [1, 2]),
        (["user", "debug", "internal"], [1, 2, 3]),
        ([], []),
    ],
)
def test_only_the_asked_levels_are_read(user: User, levels: list[str], seen: list[int]) -> None:
    run = make_run(user)
    for level in ALL:
        make_events(run, 1, visibility=level)
    assert [event.sequence for event in events_after(run, 0, limit=9, levels=levels)] == seen


def test_events_of_other_runs_are_not_read(user: User) -> None:
    run, other = make_run(user), make_run(user)
    make_events(run, 1)
    make_events(other, 3)
    assert len(events_after(run, 0, limit=9, levels=ALL)) == 1


# Signals


@pytest.fixture
def heard() -> Any:
    """What receivers of ``agent_run_event`` get."""
    heard: list[dict[str, Any]] = []

    def notice(**kwargs: Any) -> None:
        heard.append(kwargs)

    signals.agent_run_event.connect(notice)
    yield heard
    signals.agent_run_event.disconnect(notice)


def test_each_event_is_announced_with_its_particulars(submit: Any, heard: Any) -> None:
    run = submit()
    assert [kwargs["sequence"] for kwargs in heard] == list(range(1, run.event_count + 1))
    for kwargs in heard:
        assert kwargs["run"] == run
        assert kwargs["event"].pk
        assert kwargs["event_type"] == kwargs["event"].event_type
        assert kwargs["payload"] == kwargs["event"].payload
        assert kwargs["sender"] is AgentEvent


def test_a_receiver_that_raises_changes_nothing(submit: Any) -> None:
    def explode(**_: Any) -> None:
        raise ZeroDivisionError

    signals.agent_run_event.connect(explode)
    try:
        assert submit().status == "completed"
    finally:
        signals.agent_run_event.disconnect(explode)


@pytest.mark.django_db(transaction=True)
def test_an_event_that_is_rolled_back_is_not_announced(user: User, heard: Any) -> None:
    run = make_run(user, "running")

    def write() -> None:
        with transaction.atomic():
            fenced_writes.update_run(Attempt(run), [new_event(EventType.MESSAGE, text="hi")])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        write()
    assert heard == []
    assert not AgentEvent.objects.exists()


def test_an_event_is_announced_after_the_commit(
    user: User, heard: Any, django_capture_on_commit_callbacks: Any
) -> None:
    run = make_run(user, "running")
    with django_capture_on_commit_callbacks(execute=True):
        fenced_writes.update_run(Attempt(run), [new_event(EventType.MESSAGE, text="hi")])
        assert heard == []
    assert [kwargs["event_type"] for kwargs in heard] == ["message"]


def test_a_visibility_that_there_is_not_hides_the_event_and_fails_nothing(settings: Any) -> None:
    settings.AGENTIC_DJANGO_EVENT_VISIBILITY = {"step.completed": "public"}
    assert events.new_event("step.completed", step_name="a").visibility == "internal"
