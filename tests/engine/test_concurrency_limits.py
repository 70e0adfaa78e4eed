"""The concurrency limits of all agents and of one agent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User

from agentic_django.concurrency.process_state import process
from agentic_django.engine import (
    claims,
    concurrency_limits,
    dispatch,
    fenced_writes,
    lifecycle,
    queues,
)
from agentic_django.engine.attempt import Attempt
from agentic_django.engine.run_rows import process_name
from agentic_django.models import AgentRun, RunSlot
from tests.support.rows import make_run

pytestmark = pytest.mark.django_db


@pytest.fixture
def limit(settings: Any) -> Callable[..., None]:
    def limit(cap: Any) -> None:
        settings.AGENTIC_DJANGO_CONCURRENCY_LIMIT = cap

    return limit


def claim(run: AgentRun) -> Attempt | None:
    return claims.claim_run(str(run.pk))


def claimed(attempts: list[Attempt]) -> list[AgentRun]:
    return [attempt.run for attempt in attempts]


def test_limit_of_an_agent_holds_within_the_limit_of_all_agents(user: User, limit: Any) -> None:
    limit({"*": 3, "echo": 1})
    echoes = [make_run(user, "pending", agent_key="echo") for _ in range(3)]
    others = [make_run(user, "pending", agent_key="slow") for _ in range(3)]
    taken = claims.claim_due("default", 10)
    assert sorted(each.run.agent_key for each in taken) == ["echo", "slow", "slow"]
    assert RunSlot.objects.filter(key="*").count() == 3
    assert RunSlot.objects.filter(key="echo").count() == 1
    assert concurrency_limits.full_keys() == {"*", "echo"}
    assert claim(echoes[2]) is claim(others[2]) is None


def test_agent_without_a_limit_acquires_no_slot(user: User, limit: Any) -> None:
    limit({"echo": 1})
    assert claim(make_run(user, "pending", agent_key="slow"))
    assert not RunSlot.objects.exists()


def test_agent_at_its_limit_does_not_keep_other_agents_waiting(user: User, limit: Any) -> None:
    limit({"echo": 1})
    assert claim(make_run(user, "pending", agent_key="echo"))
    urgent = [make_run(user, "pending", agent_key="echo", priority=9) for _ in range(5)]
    other = make_run(user, "pending", agent_key="slow")
    claimed_instead = claim(urgent[0])
    assert claimed_instead is not None
    assert claimed_instead.run == other


def test_run_that_found_no_slot_is_enqueued_when_a_slot_is_released(
    user: User,
    limit: Any,
    monkeypatch: pytest.MonkeyPatch,
    django_capture_on_commit_callbacks: Any,
) -> None:
    limit({"echo": 1, "*": 5})
    sent: list[str] = []
    monkeypatch.setattr(queues, "enqueue", lambda run_id, agent_key: sent.append(run_id))
    held = claim(make_run(user, "pending", agent_key="echo"))
    refused = make_run(user, "pending", agent_key="echo")
    AgentRun.objects.filter(pk=refused.pk).update(enqueued_at=refused.created_at)
    queued = make_run(user, "pending", agent_key="slow", priority=9)
    AgentRun.objects.filter(pk=queued.pk).update(enqueued_at=queued.created_at)
    other = claim(refused)
    assert held is not None
    assert other is not None
    assert other.run == queued
    fenced_writes.end_attempt(held, "complete")
    refused.refresh_from_db()
    assert refused.enqueued_at is None
    with django_capture_on_commit_callbacks(execute=True):
        dispatch.enqueue_next([held.run])
    assert sent == [str(refused.pk)]
    assert concurrency_limits.full_keys() == set()


def test_as_many_waiting_runs_are_enqueued_as_runs_end_together(
    user: User,
    limit: Any,
    monkeypatch: pytest.MonkeyPatch,
    django_capture_on_commit_callbacks: Any,
) -> None:
    limit({"echo": 2, "*": 3})
    sent: list[str] = []
    monkeypatch.setattr(queues, "enqueue", lambda run_id, agent_key: sent.append(run_id))
    keys = ("echo", "echo", "slow")
    held = [claim(make_run(user, "pending", agent_key=key)) for key in keys]
    waiting = [make_run(user, "pending", agent_key="echo") for _ in range(4)]
    with django_capture_on_commit_callbacks(execute=True):
        lifecycle.complete([lifecycle.Completion(run, "Done.", [], {}) for run in held if run])
    assert sent == [str(run.pk) for run in waiting[:3]]
    assert not RunSlot.objects.exists()


def test_slots_left_from_a_time_without_a_limit_are_released(user: User, limit: Any) -> None:
    limit(1)
    held = claim(make_run(user, "pending"))
    assert held is not None
    limit(None)
    fenced_writes.end_attempt(held, "complete")
    assert RunSlot.objects.count() == 1
    limit(1)
    assert claim(make_run(user, "pending")) is not None


# Many at once


def test_due_runs_are_claimed_in_one_transaction_by_urgency(
    user: User, django_assert_num_queries: Any
) -> None:
    made = [make_run(user, "pending", priority=n) for n in range(6)]
    with django_assert_num_queries(5, exact=False):
        taken = claimed(claims.claim_due("default", 4))
    assert taken == made[:1:-1]
    for run in taken:
        stored = AgentRun.objects.get(pk=run.pk)
        assert (stored.status, stored.attempt, stored.holder) == (
            "running",
            1,
            process_name(),
        )
        assert (run.status, run.attempt, run.event_count) == ("running", 1, 1)
        assert list(stored.events.values_list("sequence", "event_type")) == [(1, "run.started")]
    assert claimed(claims.claim_due("default", 4)) == [made[1], made[0]]
    assert claims.claim_due("default", 4) == []


def test_one_run_of_a_session_is_claimed_at_a_time(user: User) -> None:
    from tests.support.rows import make_session

    session = make_session(user)
    first, second = (make_run(user, "pending", session=session) for _ in range(2))
    assert claimed(claims.claim_due("default", 9)) == [first]
    assert claims.claim_due("default", 9) == []
    first.refresh_from_db()
    fenced_writes.end_attempt(Attempt(first), "complete")
    assert claimed(claims.claim_due("default", 9)) == [second]


def test_only_the_runs_of_the_queue_are_claimed(user: User, settings: Any) -> None:
    settings.AGENTIC_DJANGO_QUEUES = {"*": "default", "slow": "long"}
    echo, slow = (make_run(user, "pending", agent_key=key) for key in ("echo", "slow"))
    assert claimed(claims.claim_due("long", 9)) == [slow]
    assert claimed(claims.claim_due("default", 9)) == [echo]


# Rows as the queue


def test_row_backend_accepts_runs_only(settings: Any) -> None:
    from django.tasks.exceptions import InvalidTask

    from tests.project.test_infrastructure import write_group

    settings.TASKS = {"default": {"BACKEND": "agentic_django.worker.backend.RowBackend"}}
    with pytest.raises(InvalidTask, match="delivers agent runs only"):
        write_group.enqueue("a")


def test_run_in_the_row_backend_is_not_enqueued_again(user: User, settings: Any) -> None:
    from agentic_django.engine import recovery
    from agentic_django.services import enqueue_agent_run
    from agentic_django.worker import backend

    settings.TASKS = {"default": {"BACKEND": "agentic_django.worker.backend.RowBackend"}}
    run = make_run(user, "pending")
    process.get(backend.RunMayBeDue).clear()
    queues.enqueue(str(run.pk), run.agent_key)
    assert process.get(backend.RunMayBeDue).is_set()
    enqueue_agent_run(run.pk)
    assert list(recovery.unqueued_runs()) == []
