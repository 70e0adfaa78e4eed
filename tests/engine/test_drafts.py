"""What a model says is there before its message is, and goes with it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections
from pydantic import BaseModel

from agentic_django.concurrency.process_state import process
from agentic_django.engine import drafts, fenced_writes, lifecycle
from agentic_django.engine.attempt import Attempt
from agentic_django.engine.drafts import DraftWriter, PartialMessage
from agentic_django.models import AgentDraft, AgentRun
from agentic_django.worker import executor
from tests.support.attempts import finish
from tests.support.openai_server import Cut, Hang, OpenAIServer, Reply
from tests.support.processes import wait_until
from tests.support.rows import make_run

pytestmark = pytest.mark.django_db(transaction=True)

TEXT = "The parcel left Leipzig this morning and will be with you tomorrow before noon."


@pytest.fixture
def run(user: User, no_queue: None) -> AgentRun:
    return make_run(user, "running")


@pytest.fixture
def asked(user: User, no_queue: None) -> AgentRun:
    """A run whose agent asks a provider that streams."""
    return AgentRun.objects.create(owner=user, agent_key="http", input_payload="Where?")


@pytest.fixture
def attempts() -> Iterator[Any]:
    """Carry a run on a thread of its own, as a worker does."""
    threads: list[threading.Thread] = []

    def carry(run: AgentRun) -> threading.Thread:
        def work() -> None:
            executor.execute(str(run.pk))
            connections.close_all()

        threads.append(threading.Thread(target=work))
        threads[-1].start()
        return threads[-1]

    yield carry
    for thread in threads:
        thread.join()


def written(run: AgentRun) -> list[str]:
    return list(run.drafts.values_list("text", flat=True))


def test_text_is_there_while_it_is_said(run: AgentRun) -> None:
    draft = PartialMessage(Attempt(run), "main:model:1")
    draft.add("The par")
    wait_until(lambda: written(run) == ["The par"])
    draft.add("cel left.")
    wait_until(lambda: written(run) == ["The parcel left."])


def test_messages_of_one_answer_stand_apart(run: AgentRun) -> None:
    draft = PartialMessage(Attempt(run), "main:model:1")
    draft.add("One.", 0)
    draft.add("Two.", 1)
    wait_until(lambda: written(run) == ["One.\n\nTwo."])


def test_what_no_database_holds_as_text_is_kept(run: AgentRun) -> None:
    draft = PartialMessage(Attempt(run), "main:model:1")
    draft.add("a\0b\ud800c")
    wait_until(lambda: written(run) == ["a\0b\ud800c"])


def test_attempt_that_lost_its_run_writes_no_draft(run: AgentRun) -> None:
    stale, draft = PartialMessage(Attempt(run), "main:model:1"), None
    stale.add("old")
    wait_until(lambda: written(run) == ["old"])
    AgentRun.objects.filter(pk=run.pk).update(attempt=2)
    run.refresh_from_db()
    draft = PartialMessage(Attempt(run), "main:model:1")
    draft.add("new")
    wait_until(lambda: written(run) == ["new"])
    stale.due = 0
    stale.add("er words")
    other = PartialMessage(Attempt(run), "main:model:2")
    other.add("later")
    wait_until(lambda: len(written(run)) == 2)
    writer = process.get(DraftWriter)
    wait_until(lambda: not writer._grown and not writer._writing)
    assert set(written(run)) == {"new", "later"}


def test_nothing_is_written_after_a_draft_is_closed(run: AgentRun) -> None:
    draft, other = (
        PartialMessage(Attempt(run), "main:model:1"),
        PartialMessage(Attempt(run), "main:model:2"),
    )
    draft.add("gone")
    draft.close()
    draft.add("more")
    other.add("here")
    wait_until(lambda: written(run))
    assert written(run) == ["here"]


def test_watched_run_is_written_often_and_another_once_a_second(
    run: AgentRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(drafts, "UNWATCHED_SECONDS", 1000.0)
    draft = PartialMessage(Attempt(run), "main:model:1")
    draft.add("a")
    wait_until(lambda: draft.due > time.monotonic() + 900)
    fenced_writes.mark_watched([run.pk])
    draft.due = time.monotonic()
    for text in ("ab", "abc", "abcd"):
        draft.add(text[-1])
        wait_until(lambda text=text: written(run) == [text])


def test_watching_does_not_touch_a_run_that_ended(run: AgentRun) -> None:
    AgentRun.objects.filter(pk=run.pk).update(status="completed")
    fenced_writes.mark_watched([run.pk])
    run.refresh_from_db()
    assert run.watched_until is None


def test_draft_goes_with_its_message(
    asked: AgentRun, openai_server: OpenAIServer, attempts: Any
) -> None:
    openai_server.enqueue(Reply(TEXT, delay=0.05))
    attempts(asked)
    seen: list[str] = []
    wait_until(lambda: seen.extend(written(asked)) or asked.events.filter(event_type="message"))
    assert not written(asked)
    assert seen
    assert all(TEXT.startswith(text) for text in seen)
    assert not AgentDraft.objects.exists()


def test_draft_of_a_cut_answer_stays_until_the_next_attempt_says_it_anew(
    asked: AgentRun, openai_server: OpenAIServer
) -> None:
    openai_server.enqueue(Cut(Reply(TEXT, delay=0.06), 9), Reply(TEXT))
    executor.execute(str(asked.pk))
    asked.refresh_from_db()
    assert asked.status == "pending"
    assert written(asked)
    assert AgentRun.objects.with_queue_position().with_steps().get().draft == written(asked)[0]
    finish(asked)
    assert asked.final_output == TEXT
    assert not written(asked)


def test_draft_goes_with_a_run_that_is_stopped(
    asked: AgentRun, openai_server: OpenAIServer, attempts: Any
) -> None:
    openai_server.enqueue(Hang(Reply(TEXT), 9))
    attempts(asked)
    wait_until(lambda: written(asked))
    asked.refresh_from_db()
    lifecycle.cancel(asked)
    assert not written(asked)


def test_answers_for_programs_and_of_nested_agents_have_no_draft(
    asked: AgentRun, scripted: Any, user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Order(BaseModel):
        number: int

    added: list[str] = []
    monkeypatch.setattr(DraftWriter, "add", lambda _, draft: added.append(draft.text))
    scripted("shaped", '{"number": 1}', output_type=Order)
    scripted("plain", "Hello")
    for key in ("shaped", "plain"):
        finish(AgentRun.objects.create(owner=user, agent_key=key, input_payload="?"))
    assert added == ["Hello"]


@pytest.mark.parametrize(
    ("name", "value"), [("EVENT_VISIBILITY", {"message": "internal"}), ("ENABLE_EVENTS", False)]
)
def test_messages_that_users_do_not_see_have_no_draft(
    scripted: Any,
    user: User,
    no_queue: None,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    value: Any,
) -> None:
    setattr(settings, f"AGENTIC_DJANGO_{name}", value)
    monkeypatch.setattr(DraftWriter, "add", lambda _, draft: pytest.fail("It was drafted."))
    scripted("plain", "Hello")
    run = finish(AgentRun.objects.create(owner=user, agent_key="plain", input_payload="?"))
    assert run.final_output == "Hello"


def test_draft_of_a_call_that_was_given_up_goes_with_the_run(run: AgentRun) -> None:
    attempt = Attempt(run)
    draft = PartialMessage(attempt, "main:model:1")
    draft.add("Never said")
    wait_until(lambda: written(run))
    draft.drop()
    lifecycle.complete([lifecycle.Completion(attempt, "Something else", [], {})])
    assert not written(run)


def test_run_within_a_hosts_transaction_has_no_draft(run: AgentRun) -> None:
    draft = PartialMessage(Attempt(run, joined_transaction=True), "main:model:1")
    draft.add("hidden")
    assert not draft.has_begun


def test_draft_of_the_last_attempt_is_shown(run: AgentRun) -> None:
    for attempt, key, text in ((1, "a", "old"), (2, "b", "new"), (2, "c", "too")):
        AgentDraft.objects.create(run=run, attempt=attempt, key=key, text=text)
    assert AgentRun.objects.with_queue_position().with_steps().get().draft == "new\n\ntoo"
    assert AgentRun.objects.get().draft == "new\n\ntoo"
    AgentRun.objects.update(status="completed")
    assert AgentRun.objects.with_queue_position().with_steps().get().draft == ""


def test_draft_changes_the_version_but_not_the_stamp(run: AgentRun) -> None:
    before = AgentRun.objects.with_queue_position().with_steps().get()
    AgentDraft.objects.create(run=run, attempt=1, key="a", text="new")
    after = AgentRun.objects.with_queue_position().with_steps().get()
    assert after.version != before.version
    assert after.stamp == before.stamp
