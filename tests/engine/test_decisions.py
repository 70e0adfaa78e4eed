"""Decisions race: with each other, with a person who stops the run, with the time limit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db.models.functions import Now

from agentic_django.concurrency.process_state import process
from agentic_django.engine import events, recovery
from agentic_django.exceptions import Conflict
from agentic_django.models import AgentRun, ToolApproval
from agentic_django.services import cancel_agent_run, decide_approval
from tests.engine.test_parallel_claims import at_once, make_waiting
from tests.support.processes import Project

pytestmark = pytest.mark.postgres

ROUNDS = 12


@pytest.fixture
def waiting(in_project: Project, no_queue: None) -> Iterator[Callable[..., AgentRun]]:
    """Return another run that waits with so many calls, on PostgreSQL."""
    ada, numbers = User.objects.create_user("ada"), count(1)

    def waiting(calls: int = 1) -> AgentRun:
        run = make_waiting(ada, calls)
        AgentRun.objects.filter(pk=run.pk).update(metadata={"round": next(numbers)})
        return run

    yield waiting
    process.stop()


def open_of(run: AgentRun) -> ToolApproval:
    return ToolApproval.objects.select_related("run__owner").get(run=run)


def each_at_once(*work: Callable[[], Any]) -> list[str]:
    """Do all this at the same moment; return what came of each, in their order."""
    left = list(enumerate(work))

    def one() -> tuple[int, str]:
        number, act = left.pop()
        try:
            return number, str(act() or "done")
        except Conflict as conflict:
            return number, str(conflict)

    return [told for _, told in sorted(at_once(len(work), one))]


def told_of(run: AgentRun) -> Counter[str]:
    """Count the events of a run, which are numbered without gaps."""
    run.refresh_from_db()
    rows = list(run.events.order_by("sequence").values_list("sequence", "event_type"))
    assert [number for number, _ in rows] == list(range(1, run.event_count + 1))
    return Counter(kind for _, kind in rows)


def test_of_two_who_decide_at_once_one_is_told_who_was_faster_and_what_they_did(
    waiting: Any, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_APPROVERS = lambda user, approval: True
    people = {True: User.objects.get(), False: User.objects.create_user("bob")}

    def decide(run: AgentRun, approve: bool) -> Callable[[], None]:
        approval = open_of(run)
        return lambda: decide_approval(approval, approve, by=people[approve]) and None

    for _ in range(ROUNDS):
        run = waiting()
        told = each_at_once(decide(run, True), decide(run, False))
        assert told in (
            ["done", "ada has already decided: approved."],
            ["bob has already decided: rejected.", "done"],
        )
        row = open_of(run)
        assert row.decided_by == people[row.decision == "approved"]
        assert told_of(run) == {"approval.decided": 1, "run.retrying": 1}


def test_a_decision_and_a_cancellation_at_once_leave_one_of_two_ends(waiting: Any) -> None:
    for _ in range(ROUNDS):
        run = waiting()
        approval, same = open_of(run), AgentRun.objects.get(pk=run.pk)
        decided, cancelled = each_at_once(
            lambda approval=approval: decide_approval(approval, True) and None,  # type: ignore[misc]
            lambda same=same: cancel_agent_run(same) and None,  # type: ignore[misc]
        )
        assert cancelled == "done"
        run.refresh_from_db()
        assert run.status == "cancelled"
        if decided == "done":  # It was first, and the run was stopped before anybody took it.
            assert told_of(run)["approval.decided"] == 1
        else:
            assert "Stopped" in decided
            assert open_of(run).is_open
            assert told_of(run) == {"run.cancelled": 1}


def test_a_decision_and_the_end_of_its_time_at_once_count_once(waiting: Any) -> None:
    for _ in range(ROUNDS):
        run = waiting()
        ToolApproval.objects.filter(run=run).update(expires_at=Now() - timedelta(seconds=1))
        approval = open_of(run)
        decided, _ = each_at_once(
            lambda approval=approval: decide_approval(approval, True) and None,  # type: ignore[misc]
            lambda: recovery.sweep() and None,
        )
        row = open_of(run)
        if decided == "done":
            assert row.decision == "approved"
        else:
            late = "Already decided: expired."
            assert (row.decision, decided) == ("expired", late)
        assert told_of(run) == {"approval.decided": 1, "run.retrying": 1}


def test_many_sweeps_at_once_reject_each_call_once(waiting: Any) -> None:
    run = waiting(5)
    ToolApproval.objects.filter(run=run).update(expires_at=Now() - timedelta(seconds=1))
    swept = at_once(4, recovery.sweep)
    assert sum(one.expired for one in swept) == 5
    assert told_of(run) == {"approval.decided": 5, "run.retrying": 1}
    assert run.status == "pending"


def test_a_decision_that_fails_on_the_way_decided_nothing(
    waiting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = waiting()

    def lost(*_: Any) -> None:
        raise ConnectionError

    approval = open_of(run)
    with monkeypatch.context() as patch:
        patch.setattr(events, "append_events", lost)
        with pytest.raises(ConnectionError):
            decide_approval(approval, True)
    run.refresh_from_db()
    assert (run.status, open_of(run).decision, run.event_count) == ("waiting", "", 0)
    decide_approval(open_of(run), True)
    assert told_of(run) == {"approval.decided": 1, "run.retrying": 1}
