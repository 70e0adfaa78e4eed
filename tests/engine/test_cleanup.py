"""Retention deletes what is old, and nothing that somebody still works on."""

from __future__ import annotations

import time
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection
from django.db.models.signals import post_delete
from django.test.utils import CaptureQueriesContext

from agentic_django.conf import CleanupPolicy
from agentic_django.engine import cleanup
from agentic_django.engine.cleanup import Deleted
from agentic_django.models import (
    ACTIVE,
    FINISHED,
    AgentEvent,
    AgentRun,
    AgentSession,
    AgentSessionItem,
    RateWindow,
    StepCheckpoint,
)
from tests.support.rows import age, make_checkpoint, make_events, make_items, make_run, make_session

pytestmark = pytest.mark.django_db


def clean(*, dry_run: bool = False, **policy: Any) -> Deleted:
    return cleanup.delete_old(CleanupPolicy(**policy), dry_run=dry_run)


def left(model: type[Any]) -> int:
    return int(model.objects.count())


def test_without_a_policy_everything_is_kept(user: User) -> None:
    session = make_session(user, days_ago=9999)
    make_events(make_run(user, session=session, days_ago=9999), 3)
    age(session, 9999)
    assert clean() == Deleted()
    assert (left(AgentSession), left(AgentRun), left(AgentEvent)) == (1, 1, 3)


# Events


def test_events_of_runs_that_ended_long_ago_are_deleted_and_the_runs_stay(user: User) -> None:
    make_events(make_run(user, days_ago=31), 3)
    make_events(make_run(user, days_ago=29), 2)
    assert clean(events_days=30) == Deleted(events=3)
    assert left(AgentEvent) == 2
    assert left(AgentRun) == 2


@pytest.mark.parametrize("status", ACTIVE)
def test_events_of_unfinished_runs_stay(user: User, status: str) -> None:
    run = make_run(user, days_ago=31)
    make_events(run, 3)
    AgentRun.objects.filter(pk=run.pk).update(status=status)  # Tried again; finished_at is old.
    assert clean(events_days=30) == Deleted()


# Runs


@pytest.mark.parametrize("status", FINISHED)
def test_runs_that_ended_long_ago_are_deleted(user: User, status: str) -> None:
    make_run(user, status, days_ago=31)
    young = make_run(user, status, days_ago=29)
    assert clean(runs_days=30) == Deleted(runs=1)
    assert AgentRun.objects.get() == young


@pytest.mark.parametrize("status", ACTIVE)
def test_unfinished_runs_are_never_deleted(user: User, status: str) -> None:
    run = make_run(user, days_ago=31)
    AgentRun.objects.filter(pk=run.pk).update(status=status)
    assert clean(runs_days=0) == Deleted()


def test_only_the_chosen_statuses_are_deleted(user: User) -> None:
    for status in FINISHED:
        make_run(user, status, days_ago=31)
    assert clean(runs_days=30, runs_statuses=["failed", "cancelled"]) == Deleted(runs=2)
    assert set(AgentRun.objects.values_list("status", flat=True)) == {"completed", "timed_out"}


def test_no_statuses_are_no_runs(user: User) -> None:
    make_run(user, days_ago=31)
    assert clean(runs_days=30, runs_statuses=[]) == Deleted()


def test_a_run_takes_its_events_and_journal_along_and_leaves_its_items(user: User) -> None:
    session = make_session(user)
    run = make_run(user, days_ago=31, session=session)
    make_events(run, 2)
    make_checkpoint(run)
    make_items(session, 2, run)
    assert clean(runs_days=30) == Deleted(runs=1)
    assert (left(AgentEvent), left(StepCheckpoint)) == (0, 0)
    assert list(AgentSessionItem.objects.values_list("run", flat=True)) == [None, None]


def test_no_days_at_all_means_all_that_is_finished(user: User) -> None:
    make_run(user)
    assert clean(runs_days=0) == Deleted(runs=1)


def test_half_a_day_is_a_number_of_days(user: User) -> None:
    make_run(user, days_ago=0.6)
    make_run(user, days_ago=0.4)
    assert clean(runs_days=0.5) == Deleted(runs=1)


@pytest.mark.parametrize("link", ["parent", "root"])
@pytest.mark.parametrize("status", ACTIVE)
def test_a_run_whose_child_is_unfinished_stays(user: User, link: str, status: str) -> None:
    old = make_run(user, days_ago=31)
    columns: dict[str, Any] = {link: old}
    make_run(user, status, **columns)
    assert clean(runs_days=30) == Deleted()
    assert left(AgentRun) == 2


@pytest.mark.parametrize("link", ["parent", "root"])
def test_a_child_whose_parent_is_unfinished_stays(user: User, link: str) -> None:
    above = make_run(user, "waiting")
    columns: dict[str, Any] = {link: above}
    make_run(user, days_ago=31, **columns)
    assert clean(runs_days=30) == Deleted()


def test_a_family_that_ended_long_ago_goes_as_a_whole(user: User) -> None:
    old = make_run(user, days_ago=31)
    make_run(user, days_ago=32, parent=old, root=old)
    clean(runs_days=30)
    assert left(AgentRun) == 0


# Sessions


def test_empty_sessions_that_were_not_used_for_long_are_deleted(user: User) -> None:
    make_session(user, days_ago=91)
    young = make_session(user, days_ago=89)
    assert clean(sessions_days=90) == Deleted(sessions=1)
    assert AgentSession.objects.get() == young


def test_sessions_with_items_or_runs_stay(user: User) -> None:
    spoken, worked = make_session(user), make_session(user)
    make_items(spoken, 1)
    make_run(user, session=worked)
    age(spoken, 91)
    age(worked, 91)
    assert clean(sessions_days=90) == Deleted()


def test_full_sessions_go_with_all_they_hold_if_the_policy_says_so(user: User) -> None:
    session = make_session(user)
    run = make_run(user, session=session)
    make_items(session, 2, run)
    make_events(run, 2)
    age(session, 91)
    policy: Any = {"sessions_days": 90, "sessions_require_empty": False}
    assert clean(**policy) == Deleted(sessions=1)
    assert [left(m) for m in (AgentSession, AgentRun, AgentSessionItem, AgentEvent)] == [0] * 4


@pytest.mark.parametrize("status", ACTIVE)
def test_a_session_with_an_unfinished_run_stays(user: User, status: str) -> None:
    session = make_session(user)
    make_run(user, status, session=session)
    age(session, 91)
    assert clean(sessions_days=90, sessions_require_empty=False) == Deleted()


def test_a_session_that_this_very_clean_up_empties_goes_too(user: User) -> None:
    session = make_session(user)
    make_run(user, days_ago=91, session=session)
    age(session, 91)
    policy: Any = {"sessions_days": 90, "runs_days": 90}
    assert clean(**policy, dry_run=True) == Deleted(runs=1, sessions=1)
    assert clean(**policy) == Deleted(runs=1, sessions=1)


# Windows of the rate limit


def test_old_windows_of_the_rate_limit_are_always_deleted(user: User) -> None:
    now = int(time.time())
    for hours in (0, 30, 60):
        RateWindow.objects.create(principal="user:1", starts_at=now - hours * 3600)
    assert clean() == Deleted(rate_windows=1)
    assert left(RateWindow) == 2


# How


def test_a_dry_run_deletes_nothing_and_foretells_the_counts(user: User) -> None:
    make_events(make_run(user, days_ago=31), 3)
    make_run(user, days_ago=61)
    make_session(user, days_ago=91)
    policy: Any = {"events_days": 30, "runs_days": 60, "sessions_days": 90}
    foretold = clean(**policy, dry_run=True)
    assert foretold == Deleted(events=3, runs=1, sessions=1)
    assert (left(AgentEvent), left(AgentRun), left(AgentSession)) == (3, 2, 1)
    assert clean(**policy) == foretold
    assert clean(**policy) == Deleted()


@pytest.mark.parametrize("count", [0, 1, 5, 6, 7])
def test_batches_delete_everything(user: User, count: int) -> None:
    for _ in range(count):
        make_run(user, days_ago=31)
    make_run(user)
    assert clean(runs_days=30, batch_size=3) == Deleted(runs=count)
    assert left(AgentRun) == 1


def test_no_statement_deletes_more_than_a_batch(user: User) -> None:
    make_events(make_run(user, days_ago=31), 25)
    with CaptureQueriesContext(connection) as queries:
        assert clean(events_days=30, batch_size=10) == Deleted(events=25)
    deletes = [q for q in queries.captured_queries if q["sql"].startswith("DELETE")]
    assert len(deletes) == 3


def test_a_run_that_is_tried_again_meanwhile_stays(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    retried, other = make_run(user, "failed", days_ago=31), make_run(user, days_ago=31)
    rows = cleanup._runs(CleanupPolicy(runs_days=30))
    batch = list(rows.values_list("pk", flat=True))
    AgentRun.objects.filter(pk=retried.pk).update(status="pending", finished_at=None)
    assert rows.filter(pk__in=batch).delete()[0] == 1
    assert AgentRun.objects.get() == retried
    assert other.pk in batch


def test_a_host_that_listens_is_told_of_each_deleted_run(user: User) -> None:
    seen: list[Any] = []

    def notice(instance: Any, **_: Any) -> None:
        seen.append(instance.pk)

    run = make_run(user, days_ago=31)
    post_delete.connect(notice, sender=AgentRun)
    try:
        clean(runs_days=30)
    finally:
        post_delete.disconnect(notice, sender=AgentRun)
    assert seen == [run.pk]
