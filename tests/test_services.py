"""The host's front door."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction

from agentic_django import services, signals
from agentic_django.exceptions import (
    AgenticError,
    BadInput,
    Conflict,
    NotSerializable,
    SessionBusy,
    UnknownAgent,
)
from agentic_django.models import AgentRun, AgentSession
from tests.support.statements import statements

pytestmark = pytest.mark.django_db(transaction=True)

Status = AgentRun.Status


@pytest.fixture
def idle(settings: Any) -> None:
    """Nobody works: what is submitted stays pending."""
    settings.TASKS = {"default": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}}


def submit(user: User, text: Any = "Hello", **options: Any) -> AgentRun:
    return services.submit_agent_run(owner=user, input_payload=text, **options)


def nothing_was_written() -> bool:
    return not AgentRun.objects.exists() and not AgentSession.objects.exists()


def test_submitted_run_is_executed_after_the_commit(user: User) -> None:
    with transaction.atomic():
        run = submit(user)
        assert AgentRun.objects.get().status == Status.PENDING
    run.refresh_from_db()
    assert (run.status, run.final_output) == (Status.COMPLETED, "You said: Hello")
    assert run.task_id


def test_run_of_a_rolled_back_transaction_never_starts(user: User) -> None:
    with transaction.atomic():
        submit(user)
        transaction.set_rollback(True)
    assert nothing_was_written()


def test_fresh_session_gets_a_key_and_the_owner(user: User) -> None:
    session = submit(user).session
    assert session is not None
    assert (session.owner, session.agent_key, session.run_count) == (user, "default", 1)
    assert session.session_key


def test_submit_to_a_fresh_session_takes_two_inserts_and_one_update(user: User, idle: None) -> None:
    with statements() as found:
        submit(user)
    assert [sql.split(" ")[0] for sql in found] == ["INSERT", "INSERT", "UPDATE"]


def test_submit_to_a_known_session_takes_four_statements(user: User, idle: None) -> None:
    submit(user, session_key="s")
    with statements() as found:
        submit(user, session_key="s")
    assert [sql.split(" ")[0] for sql in found] == ["SELECT", "UPDATE", "INSERT", "UPDATE"]


def test_runs_of_a_session_are_placed_in_order(user: User, idle: None) -> None:
    runs = [submit(user, session_key="s") for _ in range(3)]
    assert [run.position for run in runs] == [1, 2, 3]
    assert AgentSession.objects.get().run_count == 3


def test_same_key_of_another_user_is_another_session(user: User, other_user: User) -> None:
    mine, theirs = submit(user, session_key="s"), submit(other_user, session_key="s")
    assert mine.session_id != theirs.session_id


def test_same_key_of_another_tenant_is_another_session(user: User) -> None:
    mine, theirs = submit(user, session_key="s", tenant="a"), submit(user, session_key="s")
    assert mine.session_id != theirs.session_id
    assert mine.tenant == "a"


@pytest.mark.parametrize("key", ["", "a b", "a/b", "ä", "x" * 256, "a\n"])
def test_session_key_that_fits_no_address_is_refused(user: User, key: str) -> None:
    with pytest.raises(BadInput, match="session_key: A session key is 1 to 255"):
        submit(user, session_key=key)
    assert nothing_was_written()


def test_session_created_is_announced_once_and_after_the_commit(user: User) -> None:
    told: list[Any] = []

    def receiver(session: AgentSession, **_: Any) -> None:
        told.append((session.session_key, transaction.get_connection().in_atomic_block))

    signals.agent_session_created.connect(receiver)
    try:
        submit(user, session_key="s")
        submit(user, session_key="s")
    finally:
        signals.agent_session_created.disconnect(receiver)
    assert told == [("s", False)]


@pytest.mark.parametrize(
    ("payload", "title"),
    [
        ("Where is\n my  order?", "Where is my order?"),
        ("word " * 40, "word " * 15 + "word…"),
        ("x" * 200, "x" * 80),
        ("a\x00b \ud800c", "a b c"),
        ([{"role": "user", "content": "Hi"}], "Hi"),
        (
            [
                {"role": "assistant", "content": "No"},
                {"role": "user", "content": [{"type": "input_text", "text": "Yes"}]},
            ],
            "Yes",
        ),
        ([{"type": "function_call", "call_id": "1", "name": "n", "arguments": "{}"}], ""),
    ],
)
def test_session_is_titled_by_the_start_of_what_was_said(
    user: User, idle: None, payload: Any, title: str
) -> None:
    submit(user, payload)
    assert AgentSession.objects.get().title == title


def test_session_keeps_its_own_agent(user: User, idle: None) -> None:
    submit(user, session_key="s", agent_key="echo")
    assert submit(user, session_key="s").agent_key == "echo"
    assert submit(user, session_key="s", agent_key="slow").agent_key == "slow"


def test_default_agent_follows_the_setting(user: User, idle: None, settings: Any) -> None:
    settings.AGENTIC_DJANGO_DEFAULT_AGENT_KEY = "echo"
    assert submit(user).agent_key == "echo"


def test_unknown_agent_is_refused_with_a_suggestion(user: User) -> None:
    with pytest.raises(UnknownAgent, match="Did you mean 'echo'"):
        submit(user, agent_key="ecko")
    assert nothing_was_written()


@pytest.mark.parametrize("payload", ["", "  \n", [], {}, None, 3, ["text"], [{}], [{"a": 1}]])
def test_input_that_says_nothing_is_refused(user: User, payload: Any) -> None:
    with pytest.raises(BadInput, match="input: Give a text that is not empty"):
        submit(user, payload)
    assert nothing_was_written()


def test_input_that_json_cannot_hold_is_refused(user: User) -> None:
    with pytest.raises(NotSerializable, match=r"input\[0\]\.content is of type bytes"):
        submit(user, [{"role": "user", "content": b"x"}])
    assert nothing_was_written()


def test_options_context_and_metadata_are_kept(user: User, idle: None) -> None:
    options = {"max_turns": 3, "model": "gpt-5-mini", "model_settings": {"temperature": 0}}
    run = submit(user, config=options, context={"shop": 7}, metadata={"from": "import"})
    run.refresh_from_db()
    assert (run.config, run.context, run.metadata) == (options, {"shop": 7}, {"from": "import"})


def test_options_of_a_run_override_the_hosts(user: User, scripted: Any, settings: Any) -> None:
    host = {"max_turns": 5, "run_config": {"model_settings": {"temperature": 1}}}
    settings.AGENTIC_DJANGO_DEFAULT_RUN_OPTIONS = host
    model = scripted("default", "One", "Two")
    submit(user)
    submit(user, config={"model_settings": {"temperature": 0}, "workflow_name": "test"})
    assert [call.model_settings.temperature for call in model.calls] == [1, 0]
    assert set(AgentRun.objects.values_list("status", flat=True)) == {Status.COMPLETED}


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"max_turn": 3}, r"config\.max_turn: Unknown field\. Did you mean 'max_turns'\?"),
        ({"max_turns": 0}, r"config\.max_turns: Input should be greater than or equal to 1"),
        ({"max_turns": "3"}, r"config\.max_turns: Input should be a valid integer"),
        ({"model": 3}, r"config\.model: Input should be a valid string"),
        ({"workflow_name": "\x00"}, r"config\.workflow_name: The character U\+0000"),
    ],
)
def test_options_that_the_sdk_would_not_take_are_refused(
    user: User, config: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(BadInput, match=sentence):
        submit(user, config=config)
    assert nothing_was_written()


@pytest.mark.parametrize("value", ["\x00", "\ud800", float("inf")])
@pytest.mark.parametrize("name", ["context", "metadata"])
def test_data_that_the_database_cannot_hold_is_refused(user: User, name: str, value: Any) -> None:
    with pytest.raises((BadInput, NotSerializable), match=rf"{name}\.a"):
        submit(user, **{name: {"a": value}})
    assert nothing_was_written()


# Busy conversations


def test_later_run_waits_in_line_behind_the_first(user: User, idle: None) -> None:
    submit(user, session_key="s")
    second = submit(user, session_key="s")
    assert not AgentRun.objects.due().filter(pk=second.pk).exists()


def test_rejected_run_leaves_nothing_behind(user: User, idle: None) -> None:
    submit(user, session_key="s")
    with pytest.raises(SessionBusy):
        submit(user, session_key="s", on_busy="reject")
    assert AgentRun.objects.count() == 1
    assert AgentSession.objects.get().run_count == 1


def test_reject_accepts_a_run_in_an_idle_conversation(user: User) -> None:
    submit(user, session_key="s", on_busy="reject")
    run = submit(user, session_key="s", on_busy="reject")
    run.refresh_from_db()
    assert run.status == Status.COMPLETED


@pytest.mark.parametrize("status", [Status.RUNNING, Status.WAITING, Status.PENDING])
def test_interrupt_cancels_all_that_has_not_ended(user: User, idle: None, status: str) -> None:
    first, second = submit(user, session_key="s"), submit(user, session_key="s")
    AgentRun.objects.filter(pk=first.pk).update(status=status, attempt=1)
    third = submit(user, session_key="s", on_busy="interrupt")
    statuses = AgentRun.objects.order_by("position").values_list("pk", "status")
    assert list(statuses) == [
        (first.pk, Status.CANCELLED),
        (second.pk, Status.CANCELLED),
        (third.pk, Status.PENDING),
    ]


def test_of_many_at_once_one_is_not_rejected(user: User, idle: None) -> None:
    outcomes = at_once(4, lambda: submit(user, session_key="s", on_busy="reject"))
    assert sorted(outcomes) == ["AgentRun", "SessionBusy", "SessionBusy", "SessionBusy"]
    assert AgentRun.objects.count() == AgentSession.objects.get().run_count == 1


@pytest.mark.parametrize("on_busy", ["enqueue", "interrupt"])
def test_many_at_once_each_get_a_place(user: User, idle: None, on_busy: Any) -> None:
    outcomes = at_once(4, lambda: submit(user, session_key="s", on_busy=on_busy))
    assert outcomes == ["AgentRun"] * 4
    places = AgentRun.objects.order_by("position").values_list("position", flat=True)
    assert list(places) == [1, 2, 3, 4]
    assert AgentRun.objects.get(position=4).status == Status.PENDING


@pytest.mark.parametrize("round_number", range(5))
def test_of_many_interrupts_at_once_one_run_survives(
    user: User, idle: None, round_number: int
) -> None:
    submit(user, session_key="s")
    outcomes = at_once(4, lambda: submit(user, session_key="s", on_busy="interrupt"))
    assert outcomes == ["AgentRun"] * 4
    statuses = AgentRun.objects.order_by("position").values_list("status", flat=True)
    assert list(statuses) == [Status.CANCELLED] * 4 + [Status.PENDING]


def test_an_interrupt_cancels_a_run_that_is_retried_at_the_same_time(
    user: User, idle: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = submit(user, session_key="s")
    services.cancel_agent_run(run)
    reserve = AgentSession.reserve_position

    def retry_before(session: AgentSession) -> int:
        monkeypatch.undo()
        with ThreadPoolExecutor(1) as pool:  # Another request, on a connection of its own.
            pool.submit(retry_and_close, run).result()
        return reserve(session)

    if connection.vendor == "sqlite":  # One writer at a time: the retry is over before.
        services.retry_agent_run(run)
    else:
        monkeypatch.setattr(AgentSession, "reserve_position", retry_before)
    last = submit(user, session_key="s", on_busy="interrupt")
    run.refresh_from_db()
    last.refresh_from_db()
    assert (run.status, last.status) == (Status.CANCELLED, Status.PENDING)
    assert (run.position, last.position) == (1, 2)


def retry_and_close(run: AgentRun) -> None:
    services.retry_agent_run(AgentRun.objects.get(pk=run.pk))
    connection.close()


def at_once(number: int, work: Callable[[], Any]) -> list[str]:
    """Do the work in so many threads; return the types of what it returned or raised."""
    start = threading.Barrier(number)

    def one(_: int) -> str:
        start.wait()
        try:
            return type(work()).__name__
        except AgenticError as error:
            return type(error).__name__
        finally:
            connection.close()

    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(one, range(number)))


def test_misspelt_on_busy_is_refused(user: User) -> None:
    with pytest.raises(BadInput, match="on_busy: Give one of enqueue, reject, interrupt"):
        submit(user, on_busy="wait")
    assert nothing_was_written()


# Rows that hosts make


def test_run_made_through_the_orm_is_executed_once_enqueued(user: User) -> None:
    session, _ = AgentSession.objects.get_or_create(owner=user, session_key="s")
    run = AgentRun.objects.create(session=session, owner=user, agent_key="echo", input_payload="Hi")
    services.enqueue_agent_run(str(run.id))
    run.refresh_from_db()
    assert run.final_output == "You said: Hi"


@pytest.mark.parametrize("run_id", ["00000000-0000-4000-8000-000000000000", "not-a-uuid"])
def test_enqueueing_a_run_that_does_not_exist_is_an_error(db: None, run_id: str) -> None:
    with pytest.raises(AgentRun.DoesNotExist, match=f"There is no run '{run_id}'"):
        services.enqueue_agent_run(run_id)


def test_enqueueing_a_run_that_has_ended_is_an_error(user: User) -> None:
    with pytest.raises(Conflict, match="Cannot enqueue this run: it is completed now"):
        services.enqueue_agent_run(submit(user).pk)


def test_enqueueing_a_run_of_an_unknown_agent_is_an_error(user: User) -> None:
    run = AgentRun.objects.create(owner=user, agent_key="nobody", input_payload="Hi")
    with pytest.raises(UnknownAgent):
        services.enqueue_agent_run(run.pk)


# Cancel and retry


def test_cancelled_run_says_so_and_by_whom(user: User, idle: None) -> None:
    run = services.cancel_agent_run(submit(user), by=user)
    assert run.status == Status.CANCELLED
    assert run.events.get(event_type="run.cancelled").payload == {"by": "ada", "by_owner": True}


def test_ended_run_cannot_be_cancelled(user: User) -> None:
    with pytest.raises(Conflict):
        services.cancel_agent_run(submit(user))


def test_cancelled_run_can_be_retried(user: User, settings: Any, use_tasks: Any) -> None:
    settings.TASKS = {"default": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}}
    run = services.cancel_agent_run(submit(user))
    use_tasks("immediate")
    services.retry_agent_run(run, start_again=True, by=user)
    run.refresh_from_db()
    assert (run.status, run.generation) == (Status.COMPLETED, 2)


def test_completed_run_cannot_be_retried(user: User) -> None:
    with pytest.raises(Conflict):
        services.retry_agent_run(submit(user))
