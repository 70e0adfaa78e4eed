"""An attempt's state in memory: the run's columns follow the database, also after a rollback."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db.models import F

from agentic_django.engine import events, fenced_writes, lifecycle
from agentic_django.engine.attempt import Attempt
from agentic_django.models import AgentRun, StepCheckpoint
from tests.support.attempts import claim
from tests.support.rows import make_run

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("no_queue")]


@pytest.fixture
def attempt(user: User) -> Attempt:
    """An attempt of this process."""
    return claim(make_run(user, "pending"))


def columns(run: AgentRun) -> dict[str, Any]:
    return {field.attname: getattr(run, field.attname) for field in run._meta.concrete_fields}


def test_a_claim_returns_the_attempt_with_the_number_of_its_row(attempt: Attempt) -> None:
    assert attempt.number == AgentRun.objects.get(pk=attempt.run.pk).attempt == 1


def test_values_that_the_database_computes_are_not_assigned(attempt: Attempt) -> None:
    attempt.assign({"activity": "thinking", "event_count": F("event_count") + 1})
    assert (attempt.run.activity, attempt.run.event_count) == ("thinking", 1)


def test_a_failed_block_restores_what_was_assigned_in_it(attempt: Attempt) -> None:
    attempt.assign({"activity": "before"})
    with suppress(ZeroDivisionError), attempt.restored_on_error():
        attempt.assign({"activity": "one"})
        attempt.assign({"activity": "two"})
        raise ZeroDivisionError
    assert attempt.run.activity == "before"


def test_a_failed_block_restores_what_a_block_within_it_has_assigned(attempt: Attempt) -> None:
    with suppress(ZeroDivisionError), attempt.restored_on_error():
        with attempt.restored_on_error():
            attempt.assign({"activity": "inner"})
        raise ZeroDivisionError
    assert attempt.run.activity == ""


def test_a_block_that_failed_within_another_restores_only_its_own(attempt: Attempt) -> None:
    with attempt.restored_on_error():
        attempt.assign({"activity": "outer"})
        with suppress(ZeroDivisionError), attempt.restored_on_error():
            attempt.assign({"activity": "inner"})
            raise ZeroDivisionError
    assert attempt.run.activity == "outer"


@pytest.mark.parametrize("verb", ["complete", "fail", "retry_later", "cancel_attempt", "suspend"])
def test_a_verb_that_is_rolled_back_leaves_the_run_in_memory_as_it_was(
    attempt: Attempt, verb: str
) -> None:
    failure = lifecycle.Failure("internal")
    verbs: dict[str, tuple[Any, ...]] = {
        "complete": ([lifecycle.Completion(attempt, "Done.", [], {"requests": 1})],),
        "fail": (attempt, failure),
        "retry_later": (attempt, failure),
        "cancel_attempt": (attempt,),
        "suspend": (attempt, [], {"requests": 1}),
    }
    before = columns(attempt.run)
    with suppress(ZeroDivisionError), fenced_writes.fenced(attempt):
        getattr(lifecycle, verb)(*verbs[verb])
        assert attempt.run.status != "running"
        raise ZeroDivisionError
    changed = {name for name, value in columns(attempt.run).items() if value != before[name]}
    assert changed <= {"usage"}  # The sum of the recorded calls, which is true in any case.
    assert AgentRun.objects.get(pk=attempt.run.pk).status == "running"


def test_an_attempt_writes_again_after_a_rollback(attempt: Attempt) -> None:
    event = events.new_event("message", text="Hello")
    with suppress(ZeroDivisionError), fenced_writes.fenced(attempt):
        fenced_writes.update_run(attempt, [event], activity="lost")
        raise ZeroDivisionError
    fenced_writes.update_run(attempt, [event], activity="kept")
    row = AgentRun.objects.get(pk=attempt.run.pk)
    assert (row.activity, row.event_count) == ("kept", 2)
    assert list(row.events.values_list("sequence", flat=True)) == [1, 2]


def test_a_run_has_no_attributes_but_its_columns_and_relations(attempt: Attempt) -> None:
    StepCheckpoint.objects.create(run=attempt.run, key="k", kind="step", name="k", attempt=1)
    allowed = {field.attname for field in AgentRun._meta.concrete_fields} | {"_state"}
    assert set(vars(attempt.run)) <= allowed
