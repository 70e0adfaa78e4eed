"""Conversations: rows filled in for hosts, the SDK's session over them, frozen history."""

from __future__ import annotations

from typing import Any

import pytest
from agents import Agent, Runner
from agents.memory import Session
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.core.exceptions import ValidationError
from django.db import IntegrityError, transaction

from agentic_django import signals
from agentic_django.concurrency import event_loop
from agentic_django.engine import session_items
from agentic_django.engine.attempt import Attempt
from agentic_django.exceptions import BadInput, NotSerializable
from agentic_django.models import AgentRun, AgentSession, AgentSessionItem
from agentic_django.permissions import Viewer
from agentic_django.services import submit_agent_run
from agentic_django.sessions import ItemStore, RunHistory, get_session
from tests.support.agents import echo
from tests.support.rows import make_items, make_run, make_session

pytestmark = pytest.mark.django_db


def said(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def texts(items: list[Any]) -> list[Any]:
    return [item["content"] for item in items]


# Rows that a host makes through the ORM


def test_a_session_made_by_a_host_is_filled_in(user: User) -> None:
    session, is_new = AgentSession.objects.get_or_create(owner=user, session_key="orders")
    assert is_new
    assert session.principal == f"user:{user.pk}"
    assert session.tenant == ""
    again, is_new = AgentSession.objects.get_or_create(owner=user, session_key="orders")
    assert (again, is_new) == (session, False)


def test_a_run_made_by_a_host_is_filled_in(user: User) -> None:
    session = AgentSession.objects.create(owner=user, session_key="orders", tenant="north")
    run = AgentRun.objects.create(
        session=session, owner=user, agent_key="echo", input_payload="Hello"
    )
    run.refresh_from_db()
    assert (run.principal, run.tenant, run.position) == (f"user:{user.pk}", "north", 1)
    assert (run.status, run.attempt, run.generation) == ("pending", 0, 1)
    assert run.available_at == run.created_at
    assert AgentRun.objects.due().get() == run


def test_a_run_takes_its_owner_from_its_session(user: User) -> None:
    run = AgentRun.objects.create(session=make_session(user), agent_key="echo")
    assert run.owner == user
    assert run.principal == f"user:{user.pk}"


def test_a_run_without_a_session_has_no_place_in_line(user: User) -> None:
    first, second = (AgentRun.objects.create(owner=user, agent_key="echo") for _ in range(2))
    assert (first.position, second.position) == (0, 0)


def test_a_row_of_nobody_is_seen_by_nobody() -> None:
    run = AgentRun.objects.create(agent_key="job")
    assert run.principal == ""
    assert not AgentRun.objects.visible_to(Viewer.for_user(None)).exists()


def test_runs_of_a_session_are_numbered_in_the_order_they_were_made(user: User) -> None:
    session, other = make_session(user), make_session(user)
    made = [make_run(user, session=s) for s in (session, session, other, session)]
    assert [run.position for run in made] == [1, 2, 1, 3]
    session.refresh_from_db()
    assert session.run_count == 3


def test_saving_a_run_again_keeps_its_place(user: User) -> None:
    run = make_run(user, session=make_session(user))
    run.priority = 3
    run.save()
    run.refresh_from_db()
    assert (run.position, run.priority) == (1, 3)


def test_two_runs_never_have_one_place(user: User) -> None:
    run = make_run(user, session=make_session(user))
    with pytest.raises(IntegrityError), transaction.atomic():
        make_run(user, session=run.session, position=1)


def test_a_key_is_an_owners_own(user: User, other_user: User) -> None:
    make_session(user, session_key="orders")
    make_session(other_user, session_key="orders")
    make_session(user, session_key="orders", tenant="north")
    with pytest.raises(IntegrityError), transaction.atomic():
        make_session(user, session_key="orders")


@pytest.mark.parametrize("key", ["", "a b", "a/b", "ä", "a\n", "a" * 256, "a.b"])
def test_a_key_that_could_not_stand_in_an_address_is_invalid(user: User, key: str) -> None:
    with pytest.raises(ValidationError, match="session_key"):
        AgentSession(owner=user, session_key=key, agent_key="echo").full_clean()


def test_a_user_takes_everything_along(user: User) -> None:
    session = make_session(user)
    make_items(session, 2, make_run(user, session=session))
    user.delete()
    assert not AgentSession.objects.exists()
    assert not AgentRun.objects.exists()
    assert not AgentSessionItem.objects.exists()


def test_a_sessions_own_title_is_its_name(user: User) -> None:
    assert str(make_session(user, session_key="orders")) == "orders"
    assert str(make_session(user, session_key="o", title="Orders")) == "Orders"


# The SDK's session, outside of runs


def test_both_sessions_speak_the_sdks_protocol(user: User) -> None:
    session = make_session(user)
    assert isinstance(ItemStore(session), Session)
    assert isinstance(RunHistory(Attempt(make_run(user, session=session))), Session)


def test_the_sdks_own_runner_remembers_over_calls(user: User) -> None:
    def ask(text: str) -> Any:
        store = get_session("orders", user)
        return async_to_sync(Runner.run)(echo(), text, session=store)

    ask("My name is Ada.")
    result = ask("Hello again.")
    assert result.final_output == "You said: Hello again."
    assert texts(result.to_input_list())[0] == "My name is Ada."
    assert AgentSessionItem.objects.count() == 4
    assert AgentSession.objects.get().item_count == 4


def test_the_sdks_runner_gives_the_model_what_was_said(user: User, scripted: Any) -> None:
    model = scripted("memory", "First.", "Second.")
    agent = Agent(name="memory", model=model)
    for text in ("One", "Two"):
        async_to_sync(Runner.run)(agent, text, session=get_session("orders", user))
    heard = model.calls[1].input
    assert [item["role"] for item in heard] == ["user", "assistant", "user"]


def test_a_session_and_runs_of_the_app_share_one_history(
    user: User, django_capture_on_commit_callbacks: Any
) -> None:
    async_to_sync(get_session("orders", user).add_items)([said("Before")])
    with django_capture_on_commit_callbacks(execute=True):
        submit_agent_run(owner=user, input_payload="Hello", session_key="orders", agent_key="echo")
    items = async_to_sync(get_session("orders", user).get_items)()
    assert [item["role"] for item in items] == ["user", "user", "assistant"]


def test_a_session_is_made_once(user: User, django_capture_on_commit_callbacks: Any) -> None:
    made: list[Any] = []

    def notice(session: AgentSession, **_: Any) -> None:
        made.append(session.session_key)

    signals.agent_session_created.connect(notice)
    try:
        with django_capture_on_commit_callbacks(execute=True):
            first, second = get_session("orders", user), get_session("orders", user)
    finally:
        signals.agent_session_created.disconnect(notice)
    assert first.session == second.session
    assert first.session_id == "orders"
    assert made == ["orders"]


def test_a_session_of_another_user_or_tenant_is_another(user: User, other_user: User) -> None:
    stores = [
        get_session("orders", user),
        get_session("orders", other_user),
        get_session("orders", user, tenant="north"),
    ]
    assert len({store.session.pk for store in stores}) == 3


@pytest.mark.parametrize("key", ["", "a b", "../x", "a" * 256])
def test_a_session_is_not_made_under_a_bad_key(user: User, key: str) -> None:
    with pytest.raises(BadInput, match="session_key"):
        get_session(key, user)
    assert not AgentSession.objects.exists()


@pytest.mark.parametrize(("limit", "count"), [(None, 3), (2, 2), (0, 0), (-1, 0), (9, 3)])
def test_the_last_items_are_returned_oldest_first(
    user: User, limit: int | None, count: int
) -> None:
    session = make_session(user)
    make_items(session, 3)
    items = async_to_sync(ItemStore(session).get_items)(limit)
    assert texts(items) == ["Item 1", "Item 2", "Item 3"][3 - count :]


def test_the_last_item_is_taken_back(user: User) -> None:
    store = get_session("orders", user)
    make_items(store.session, 2)
    assert async_to_sync(store.pop_item)() == said("Item 2")
    async_to_sync(store.add_items)([said("Instead")])
    assert texts(async_to_sync(store.get_items)()) == ["Item 1", "Instead"]


def test_nothing_is_taken_back_from_an_empty_session(user: User) -> None:
    assert async_to_sync(get_session("orders", user).pop_item)() is None


def test_a_session_is_cleared_alone(user: User) -> None:
    store, other = get_session("orders", user), get_session("returns", user)
    make_items(store.session, 2)
    make_items(other.session, 2)
    async_to_sync(store.clear_session)()
    assert async_to_sync(store.get_items)() == []
    assert len(async_to_sync(other.get_items)()) == 2


def test_items_keep_what_databases_refuse(user: User) -> None:
    store = get_session("orders", user)
    async_to_sync(store.add_items)([said("\x00\ud800")])
    assert async_to_sync(store.get_items)() == [said("\x00\ud800")]


def test_an_item_that_cannot_be_stored_is_refused_and_none_is_written(user: User) -> None:
    store = get_session("orders", user)
    with pytest.raises(NotSerializable, match=r"items\[1\]\.content"):
        async_to_sync(store.add_items)([said("a"), {"role": "user", "content": b"b"}])
    assert async_to_sync(store.get_items)() == []


def test_adding_nothing_writes_nothing(user: User) -> None:
    store = get_session("orders", user)
    before = AgentSession.objects.values().get()
    async_to_sync(store.add_items)([])
    assert AgentSession.objects.values().get() == before


def test_adding_items_is_a_use_of_the_session(user: User) -> None:
    session = make_session(user, days_ago=5)
    session.refresh_from_db()
    before = session.updated_at
    session_items.append_items(session, [said("a")])
    assert AgentSession.objects.get().updated_at > before


def test_items_know_the_run_that_wrote_them(user: User) -> None:
    session = make_session(user)
    run = make_run(user, session=session)
    session_items.append_run_items([(run, [said("a")])])
    assert session_items.read_items(session, run=run) == [said("a")]
    session_items.delete_run_items(run)
    assert session_items.read_items(session) == []


def test_a_run_outside_of_any_conversation_leaves_nothing(user: User) -> None:
    session_items.append_run_items([(make_run(user), [said("a")])])
    assert not AgentSessionItem.objects.exists()


# History within a run


@pytest.fixture
def history(user: User) -> RunHistory:
    """A run's history, with two items from before it."""
    session = make_session(user, session_key="orders")
    make_items(session, 2)
    return RunHistory(Attempt(make_run(user, "running", session=session)))


def get(history: RunHistory, limit: int | None = None) -> list[Any]:
    return texts(event_loop.run_on_loop(lambda: history.get_items(limit)))


def add(history: RunHistory, *items: Any) -> None:
    event_loop.run_on_loop(lambda: history.add_items(list(items)))


def test_history_stands_still_once_a_run_has_read_it(history: RunHistory) -> None:
    assert get(history) == ["Item 1", "Item 2"]
    assert history.run.session is not None
    session_items.append_items(history.run.session, [said("From elsewhere")])
    assert get(history) == ["Item 1", "Item 2"]


def test_a_run_sees_what_it_added_itself(history: RunHistory) -> None:
    add(history, said("Mine"))
    assert get(history) == ["Item 1", "Item 2", "Mine"]
    assert history.added == [said("Mine")]


def test_what_a_run_adds_is_not_written_before_its_end(history: RunHistory) -> None:
    add(history, said("Mine"))
    assert AgentSessionItem.objects.count() == 2


@pytest.mark.parametrize(
    ("limit", "seen"),
    [(2, ["Item 2", "Mine"]), (1, ["Mine"]), (0, []), (-1, []), (9, ["Item 1", "Item 2", "Mine"])],
)
def test_a_run_sees_the_last_items(history: RunHistory, limit: int, seen: list[str]) -> None:
    add(history, said("Mine"))
    assert get(history, limit) == seen


def test_a_run_takes_back_only_what_it_added(history: RunHistory) -> None:
    add(history, said("Mine"))
    assert event_loop.run_on_loop(history.pop_item) == said("Mine")
    assert event_loop.run_on_loop(history.pop_item) is None
    assert get(history) == ["Item 1", "Item 2"]


def test_a_run_clears_only_what_it_added(history: RunHistory) -> None:
    add(history, said("Mine"))
    event_loop.run_on_loop(history.clear_session)
    assert get(history) == ["Item 1", "Item 2"]
    assert AgentSessionItem.objects.count() == 2


def test_a_run_is_refused_items_that_could_not_be_stored_at_its_end(history: RunHistory) -> None:
    with pytest.raises(NotSerializable):
        add(history, {"role": "user", "content": object()})
    assert history.added == []


def test_a_run_outside_of_any_conversation_has_no_history(user: User) -> None:
    history = RunHistory(Attempt(make_run(user, "running")))
    assert get(history) == []
    assert history.session_id == str(history.run.pk)


# What runs leave


def submit(user: User, capture: Any, text: str = "Hello", **options: Any) -> AgentRun:
    with capture(execute=True):
        run = submit_agent_run(owner=user, input_payload=text, session_key="orders", **options)
    run.refresh_from_db()
    return run


def test_a_completed_run_leaves_question_and_answer(
    user: User, django_capture_on_commit_callbacks: Any
) -> None:
    run = submit(user, django_capture_on_commit_callbacks)
    assert run.session is not None
    items = session_items.read_items(run.session, run=run)
    assert [item["role"] for item in items] == ["user", "assistant"]


def test_a_failed_run_leaves_the_question(
    user: User, django_capture_on_commit_callbacks: Any
) -> None:
    run = submit(user, django_capture_on_commit_callbacks, agent_key="broken")
    assert run.status == "failed"
    assert run.session is not None
    assert session_items.read_items(run.session) == [said("Hello")]


def test_the_turn_after_a_failure_sees_the_question(
    user: User, django_capture_on_commit_callbacks: Any, scripted: Any
) -> None:
    submit(user, django_capture_on_commit_callbacks, agent_key="broken")
    model = scripted("default", "An answer.")
    submit(user, django_capture_on_commit_callbacks, "Again", agent_key="default")
    assert texts(model.calls[0].input) == ["Hello", "Again"]


def test_a_run_that_is_tried_again_leaves_its_turn_once(
    user: User, django_capture_on_commit_callbacks: Any, scripted: Any
) -> None:
    from agentic_django.services import retry_agent_run

    run = submit(user, django_capture_on_commit_callbacks, agent_key="broken")
    scripted("broken", "Now it works.")
    with django_capture_on_commit_callbacks(execute=True):
        retry_agent_run(run)
    run.refresh_from_db()
    assert run.final_output == "Now it works."
    assert run.session is not None
    items = session_items.read_items(run.session)
    assert [item["role"] for item in items] == ["user", "assistant"]
