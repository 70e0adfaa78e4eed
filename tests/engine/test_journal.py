"""What was paid for is recorded once, with the events that tell of it, by whoever holds the run."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import IntegrityError, OperationalError, connections

from agentic_django.concurrency import event_loop
from agentic_django.engine import events, fenced_writes, journal, journal_entries
from agentic_django.engine.attempt import Attempt
from agentic_django.engine.journal import Journal
from agentic_django.engine.journal_entries import CallResult
from agentic_django.exceptions import StaleAttempt
from agentic_django.models import AgentRun, StepCheckpoint
from tests.support.attempts import claim, numbered, record
from tests.support.rows import make_run

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("no_queue")]


@pytest.fixture
def attempt(user: User) -> Attempt:
    """An attempt of this process."""
    return claim(make_run(user, "pending"))


def result(key: str = "/-.echo#1:model:1", **columns: Any) -> CallResult:
    usage = {"requests": 1, "total_tokens": 5}
    columns = {"kind": "model", "name": "echo", "value": "x", "seconds": 1.5, **columns}
    return CallResult(key, usage=columns.pop("usage", usage), **columns)


def told(count: int = 1) -> list[Any]:
    return [events.new_event("message", text=f"{n}") for n in range(count)]


def test_a_result_is_written_with_its_events(attempt: Attempt) -> None:
    row = record(attempt, result(), told(2))
    row.refresh_from_db()
    assert (row.kind, row.name, row.result, row.attempt) == ("model", "echo", "x", 1)
    assert row.duration_seconds == 1.5
    assert row.finished_at is not None
    assert 1.4 < (row.finished_at - row.started_at).total_seconds() < 1.6
    assert numbered(attempt.run) == ["run.started", "message", "message"]


def test_a_stale_attempt_records_nothing(attempt: Attempt) -> None:
    AgentRun.objects.update(attempt=2)
    with pytest.raises(StaleAttempt):
        record(attempt, result(), told())
    assert not StepCheckpoint.objects.exists()
    assert AgentRun.objects.get().events.count() == 1


def test_a_result_is_recorded_once(attempt: Attempt) -> None:
    record(attempt, result(), told())
    with pytest.raises(IntegrityError):
        record(attempt, result(), told())
    record(attempt, result("another"), told())
    assert numbered(attempt.run) == ["run.started", "message", "message"]


def test_a_rollback_restores_the_run_in_memory(
    attempt: Attempt, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(journal_entries, "save_entries", _away)
        with pytest.raises(OperationalError):
            record(attempt, result(), told(3))
    assert attempt.run.event_count == 1
    record(attempt, result(), told())
    assert numbered(attempt.run) == ["run.started", "message"]


def _away(*args: Any, **kwargs: Any) -> None:
    raise OperationalError("The database is away.")


def test_a_recorded_result_resets_the_count_of_failures(attempt: Attempt) -> None:
    AgentRun.objects.update(failures=3)
    record(attempt, result())
    assert AgentRun.objects.get().failures == 0


def test_a_result_replaces_its_intent(attempt: Attempt) -> None:
    intent = journal_entries.record_intent(attempt, "pay", "tool", "pay")
    assert intent.is_intent
    row = record(attempt, result("pay", kind="tool", name="pay"), told(), intent)
    row.refresh_from_db()
    assert row.pk == intent.pk
    assert not row.is_intent
    assert StepCheckpoint.objects.count() == 1


@pytest.mark.not_replayed
def test_a_first_attempt_reads_nothing(
    attempt: Attempt, django_assert_num_queries: Callable[..., Any]
) -> None:
    with django_assert_num_queries(0):
        assert journal.load_journal(attempt).find("/-.echo#1:model:1") is None


def test_a_later_attempt_finds_what_earlier_ones_recorded(attempt: Attempt) -> None:
    record(attempt, result())
    attempt.number = 2
    found = journal.load_journal(attempt).find("/-.echo#1:model:1")
    assert found is not None
    assert found.result == "x"


def test_a_new_generation_finds_nothing_and_is_billed_for_all(attempt: Attempt) -> None:
    record(attempt, result())
    attempt.number, attempt.run.generation = 2, 2
    loaded = journal.load_journal(attempt)
    assert loaded.find("/-.echo#1:model:1") is None
    assert loaded.usage() == {"requests": 1, "total_tokens": 5}


@pytest.mark.parametrize("length", [10, 200, 201, 5000])
def test_long_keys_are_shortened_and_stay_different(attempt: Attempt, length: int) -> None:
    keys = ["k" * length + ending for ending in ("a", "b")]
    for key in keys:
        record(attempt, result(key, value=key))
    attempt.number = 2
    loaded = journal.load_journal(attempt)
    for key in keys:
        row = loaded.find(key)
        assert row is not None
        assert row.result == key


@pytest.mark.parametrize("text", ["half \ud83d of a smiley", "a\0b", '{"b": 1.0, "a": 1e400}'])
def test_results_are_stored_without_a_change(attempt: Attempt, text: str) -> None:
    value = {"text": text, "numbers": [1.0, 10**30], "none": None, text: True}
    row = record(attempt, result(value=value))
    row.refresh_from_db()
    assert row.result == value
    assert list(row.result) == list(value)


def test_an_error_that_must_end_the_attempt_is_raised_after_it_was_swallowed(
    attempt: Attempt,
) -> None:
    kept = Journal(attempt)
    AgentRun.objects.update(status="cancelled")

    async def work() -> None:
        with pytest.raises(StaleAttempt):
            await kept.record(result(), told())

    event_loop.run_on_loop(work)
    with pytest.raises(StaleAttempt), kept.enforced_end():
        pass


def test_a_deferred_event_is_part_of_the_next_write(attempt: Attempt) -> None:
    kept = Journal(attempt)
    kept.defer(events.new_event("log", message="first"))
    event_loop.run_on_loop(lambda: kept.record(result(), told()))
    assert numbered(attempt.run) == ["run.started", "log", "message"]
    assert kept.pop_deferred() == []


def test_a_run_that_was_written_to_can_be_copied_and_pickled(attempt: Attempt) -> None:
    record(attempt, result())
    for again in (pickle.loads(pickle.dumps(attempt.run)), copy.deepcopy(attempt.run)):
        assert again == attempt.run
        assert again.event_count == attempt.run.event_count


@pytest.mark.django_db(transaction=True)
def test_writes_from_two_threads_number_their_events_without_gaps(attempt: Attempt) -> None:
    """As when an event is written while a result is recorded beside a synchronous tool."""

    def write(n: int) -> None:
        if n % 2:
            fenced_writes.update_run(attempt, told(2))
        else:
            record(attempt, result(f"{n}"), told())
        connections.close_all()

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(20)))
    assert numbered(attempt.run) == ["run.started", *["message"] * 30]
