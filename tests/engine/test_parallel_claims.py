"""Many at once: counters stay without gaps, and caps and turns are exact."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections

from agentic_django import sessions
from agentic_django.engine import claims, fenced_writes, session_items
from agentic_django.engine.attempt import Attempt
from agentic_django.exceptions import Conflict
from agentic_django.models import (
    AgentEvent,
    AgentRun,
    AgentSession,
    AgentSessionItem,
    RunSlot,
    ToolApproval,
)
from agentic_django.services import decide_approval
from tests.support.processes import Project
from tests.support.rows import make_run, make_session


def at_once(count: int, work: Callable[[], Any]) -> list[Any]:
    """Return what so many threads bring back that start at the same moment."""
    barrier, brought = threading.Barrier(count), []

    def body() -> None:
        barrier.wait()
        try:
            brought.append(work())
        finally:
            connections.close_all()

    threads = [threading.Thread(target=body) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return brought


def claim_at_once(made: list[AgentRun]) -> list[Attempt]:
    """Let as many threads as runs claim one each, and return the claims that succeeded."""
    pending = iter([str(run.pk) for run in made])
    attempts = at_once(len(made), lambda: claims.claim_run(next(pending)))
    return [attempt for attempt in attempts if attempt is not None]


@pytest.mark.django_db(transaction=True)
def test_of_many_claims_of_one_run_one_succeeds(user: User) -> None:
    run = make_run(user, "pending")
    claimed = at_once(8, lambda: claims.claim_run(str(run.pk)))
    assert [attempt.run for attempt in claimed if attempt] == [run]
    assert AgentEvent.objects.get().sequence == 1


@pytest.mark.postgres
def test_twenty_threads_claim_exactly_as_many_as_the_limit(
    in_project: Project, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_CONCURRENCY_LIMIT = 2
    owner = User.objects.create_user("ada")
    made = [make_run(owner, "pending") for _ in range(20)]
    for _ in range(5):
        held = claim_at_once(made)
        assert len(held) == 2
        assert AgentRun.objects.running().count() == 2
        for attempt in held:
            fenced_writes.end_attempt(attempt, "requeue")
        assert not RunSlot.objects.exists()


@pytest.mark.postgres
def test_twenty_threads_claim_one_run_of_each_session(in_project: Project) -> None:
    owner = User.objects.create_user("ada")
    talks = [make_session(owner) for _ in range(4)]
    made = [make_run(owner, "pending", session=talks[n % 4]) for n in range(20)]
    held = [attempt.run for attempt in claim_at_once(made)]
    assert {run.session_id for run in held} == {talk.pk for talk in talks}
    assert len(held) == 4
    assert all(run.position == 1 for run in held)


@pytest.mark.postgres
def test_concurrent_runs_get_unique_positions_without_gaps(in_project: Project) -> None:
    owner = User.objects.create_user("ada")
    session = make_session(owner)

    def add() -> int:
        mine = AgentSession.objects.get(pk=session.pk)
        return AgentRun.objects.create(session=mine, owner=owner, agent_key="echo").position

    assert sorted(at_once(20, add)) == list(range(1, 21))


@pytest.mark.django_db(transaction=True)
def test_positions_are_unique_in_threads_on_every_database(user: User) -> None:
    session = make_session(user)

    def add() -> int:
        mine = AgentSession.objects.get(pk=session.pk)
        return make_run(user, "pending", session=mine).position

    assert sorted(at_once(8, add)) == list(range(1, 9))


@pytest.mark.django_db(transaction=True)
def test_concurrent_items_are_numbered_without_gaps(user: User) -> None:
    session = make_session(user)

    def add() -> None:
        mine = AgentSession.objects.get(pk=session.pk)
        session_items.append_items(mine, [{"role": "user", "content": "x"}] * 3)

    at_once(8, add)
    numbers = AgentSessionItem.objects.order_by("sequence").values_list("sequence", flat=True)
    assert list(numbers) == list(range(1, 25))


@pytest.mark.django_db(transaction=True)
def test_concurrent_first_messages_create_one_session(user: User) -> None:
    stores = at_once(8, lambda: sessions.get_session("orders", user))
    assert len({store.session.pk for store in stores}) == AgentSession.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_the_limit_is_exact_in_threads_on_every_database(user: User, settings: Any) -> None:
    settings.AGENTIC_DJANGO_CONCURRENCY_LIMIT = 2
    assert len(claim_at_once([make_run(user, "pending") for _ in range(8)])) == 2
    assert RunSlot.objects.count() == 2


# Decisions


def make_waiting(user: User, count: int) -> AgentRun:
    """Return a run that waits with so many calls."""
    run = make_run(user, "waiting", attempt=1)
    for n in range(count):
        ToolApproval.objects.create(run=run, key=f"k{n}", tool="pay", arguments={"n": n})
    return run


def decide(pk: Any, approve: bool = True) -> str:
    """Decide, and return what came of it."""
    approval = ToolApproval.objects.select_related("run").get(pk=pk)
    try:
        decide_approval(approval, approve)
    except Conflict as conflict:
        return str(conflict)
    return "decided"


@pytest.mark.django_db(transaction=True)
def test_of_many_concurrent_decisions_one_is_recorded(user: User, no_queue: None) -> None:
    run = make_waiting(user, 1)
    pk = run.approvals.get().pk
    told = at_once(8, lambda: decide(pk))
    assert sorted(told)[-1] == "decided"
    assert set(told) == {"decided", "Already decided: approved."}
    assert told.count("decided") == 1
    kinds = list(run.events.order_by("sequence").values_list("event_type", flat=True))
    assert kinds == ["approval.decided", "run.retrying"]


@pytest.mark.django_db(transaction=True)
def test_the_last_of_many_concurrent_decisions_queues_the_run(user: User, no_queue: None) -> None:
    for _ in range(3):
        run = make_waiting(user, 6)
        left = list(run.approvals.values_list("pk", flat=True))
        assert at_once(6, lambda left=left: decide(left.pop())) == ["decided"] * 6  # type: ignore[misc]
        run.refresh_from_db()
        assert run.status == "pending"
        numbers = list(run.events.order_by("sequence").values_list("sequence", flat=True))
        assert numbers == list(range(1, 8))
