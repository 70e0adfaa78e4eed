"""Every verb from every state; who may write is decided in the write itself."""

from __future__ import annotations

from datetime import timedelta
from itertools import product
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connection, transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.test.utils import CaptureQueriesContext

from agentic_django import signals
from agentic_django.engine import claims, dispatch, events, fenced_writes
from agentic_django.engine.attempt import Attempt
from agentic_django.engine.events import EventType
from agentic_django.engine.run_rows import process_name
from agentic_django.engine.transitions import TRANSITIONS
from agentic_django.exceptions import Conflict, StaleAttempt
from agentic_django.models import AgentEvent, AgentRun, RunSlot
from tests.support.attempts import claim
from tests.support.rows import make_events, make_run, make_session

pytestmark = pytest.mark.django_db

WORKERS_VERBS = ("complete", "fail", "time_out", "suspend", "requeue")
OUTSIDE_VERBS = ("resume", "retry", "cancel", "requeue", "fail")
STATES = [str(status) for status in AgentRun.Status]


def stored(run: AgentRun) -> dict[str, Any]:
    """Return the row as it stands in the database, with its events."""
    row: Any = AgentRun.objects.filter(pk=run.pk).values().get()
    told = AgentEvent.objects.filter(run=run).order_by("sequence")
    return {**row, "events": list(told.values_list("sequence", "event_type"))}


def claimed(run: AgentRun) -> AgentRun | None:
    """Claim a run, or another one of its queue, and return the claimed run."""
    attempt = claims.claim_run(str(run.pk))
    return attempt.run if attempt else None


def told(verb: str) -> list[events.Event]:
    return [events.new_event(TRANSITIONS[verb].event)]


# The table


def test_every_status_but_completed_has_a_transition() -> None:
    left = {source for step in TRANSITIONS.values() for source in step.sources}
    assert left == set(STATES) - {"completed"}


def test_every_status_is_the_target_of_a_transition() -> None:
    assert {step.target for step in TRANSITIONS.values()} == set(STATES)


def test_every_transition_has_an_event_that_users_see() -> None:
    for step in TRANSITIONS.values():
        assert step.event.startswith("run.")
        assert events.EVENT_KINDS[step.event].visibility == "user"


# A worker's verbs


@pytest.mark.parametrize(("verb", "state"), list(product(WORKERS_VERBS, STATES)))
def test_an_attempt_moves_its_run_only_from_the_right_status(
    user: User, verb: str, state: str
) -> None:
    run = make_run(user, state)
    before = stored(run)
    if state in TRANSITIONS[verb].sources:
        fenced_writes.end_attempt(Attempt(run), verb, told(verb))
        after = stored(run)
        assert after["status"] == run.status == TRANSITIONS[verb].target
        assert after["events"] == [(1, TRANSITIONS[verb].event)]
        assert after["lease_ends_at"] is None
    else:
        with pytest.raises(StaleAttempt, match=f"cannot {verb} it"):
            fenced_writes.end_attempt(Attempt(run), verb, told(verb))
        assert stored(run) == before


@pytest.mark.parametrize("verb", WORKERS_VERBS)
def test_a_stale_attempt_changes_nothing(user: User, verb: str) -> None:
    run = make_run(user, "running")
    stale = Attempt(AgentRun.objects.get(pk=run.pk))
    AgentRun.objects.filter(pk=run.pk).update(attempt=2)
    before = stored(run)
    with pytest.raises(StaleAttempt):
        fenced_writes.end_attempt(stale, verb, told(verb))
    with pytest.raises(StaleAttempt):
        fenced_writes.update_run(
            stale, [events.new_event(EventType.MESSAGE, text="late")], activity="late"
        )
    assert stored(run) == before


@pytest.mark.parametrize("verb", WORKERS_VERBS)
def test_an_attempt_with_a_higher_number_than_its_row_changes_nothing(
    user: User, verb: str
) -> None:
    run = make_run(user, "running")
    run.attempt += 1
    with pytest.raises(StaleAttempt):
        fenced_writes.end_attempt(Attempt(run), verb, told(verb))


def test_an_attempt_of_a_deleted_run_is_stale(user: User) -> None:
    run = make_run(user, "running")
    AgentRun.objects.all().delete()
    with pytest.raises(StaleAttempt):
        fenced_writes.update_run(Attempt(run))


@pytest.mark.parametrize("state", [s for s in STATES if s != "running"])
def test_an_attempt_writes_only_while_its_run_is_running(user: User, state: str) -> None:
    run = make_run(user, state)
    before = stored(run)
    with pytest.raises(StaleAttempt):
        fenced_writes.update_run(Attempt(run), [events.new_event(EventType.MESSAGE, text="late")])
    assert stored(run) == before


def test_the_guarded_update_is_the_first_statement(user: User) -> None:
    run = make_run(user, "running")
    with CaptureQueriesContext(connection) as queries:
        fenced_writes.update_run(Attempt(run), [events.new_event(EventType.MESSAGE, text="hi")])
    statements = [q["sql"] for q in queries if not q["sql"].startswith(("SAVEPOINT", "RELEASE"))]
    assert statements[0].startswith("UPDATE")
    assert len(statements) == 2


def test_a_stale_attempt_is_not_an_ordinary_exception(user: User) -> None:
    assert not issubclass(StaleAttempt, Exception)


def test_the_end_of_a_run_sets_its_time_and_its_active_seconds(user: User) -> None:
    run = make_run(user, "pending")
    attempt = claim(run)
    attempt.started -= 2
    fenced_writes.end_attempt(attempt, "complete")
    run.refresh_from_db()
    assert 2 <= run.active_seconds < 10
    assert run.started_at is not None
    assert run.finished_at is not None
    assert run.finished_at >= run.started_at


def test_a_waiting_run_is_not_finished(user: User) -> None:
    run = make_run(user, "running")
    fenced_writes.end_attempt(Attempt(run), "suspend")
    run.refresh_from_db()
    assert run.finished_at is None
    assert run.is_active


# Verbs from outside


@pytest.mark.parametrize(("verb", "state"), list(product(OUTSIDE_VERBS, STATES)))
def test_a_person_moves_a_run_only_from_the_right_status(user: User, verb: str, state: str) -> None:
    run = make_run(user, state)
    before = stored(run)
    if state in TRANSITIONS[verb].sources:
        fenced_writes.change_status(run, verb, told(verb))
        assert stored(run)["status"] == run.status == TRANSITIONS[verb].target
        assert stored(run)["events"] == [(1, TRANSITIONS[verb].event)]
    else:
        shown_verb = "stop" if verb == "cancel" else verb
        with pytest.raises(Conflict, match=f"Cannot {shown_verb} this run: its status is "):
            fenced_writes.change_status(run, verb, told(verb))
        assert stored(run) == before


@pytest.mark.parametrize("state", ["pending", "running", "waiting"])
def test_a_stale_page_can_still_cancel(user: User, state: str) -> None:
    run = make_run(user, state)
    AgentRun.objects.filter(pk=run.pk).update(attempt=7)
    make_events(AgentRun.objects.get(pk=run.pk), 5)
    fenced_writes.change_status(run, "cancel", told("cancel"))
    assert (run.status, run.attempt) == ("cancelled", 7)
    assert stored(run)["events"][-1] == (6, "run.cancelled")


def test_a_refused_transition_reloads_the_run(user: User) -> None:
    run = make_run(user, "running")
    AgentRun.objects.filter(pk=run.pk).update(status="completed")
    with pytest.raises(Conflict, match="its status is Completed"):
        fenced_writes.change_status(run, "cancel")
    assert run.status == "completed"


def test_a_guard_restricts_a_transition(user: User) -> None:
    run = make_run(user, "running")
    with pytest.raises(Conflict):
        fenced_writes.change_status(run, "requeue", guard=Q(attempt=99))
    fenced_writes.change_status(run, "requeue", guard=Q(attempt=1))
    assert run.status == "pending"


def test_a_cancelled_attempt_cannot_complete(user: User) -> None:
    run = make_run(user, "running")
    held = Attempt(AgentRun.objects.get(pk=run.pk))
    fenced_writes.change_status(run, "cancel", told("cancel"))
    with pytest.raises(StaleAttempt):
        fenced_writes.end_attempt(held, "complete", told("complete"), final_output="too late")
    after = stored(run)
    assert (after["status"], after["final_output"]) == ("cancelled", None)
    assert after["events"] == [(1, "run.cancelled")]


# State and event are one


@pytest.mark.parametrize("verb", WORKERS_VERBS)
def test_a_transition_and_its_event_commit_together(
    user: User, verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(user, "running")
    before = stored(run)
    monkeypatch.setattr(events, "append_for_runs", lambda *args: 1 / 0)
    with pytest.raises(ZeroDivisionError), transaction.atomic():
        fenced_writes.end_attempt(Attempt(run), verb, told(verb))
    assert stored(run) == before


def test_events_are_numbered_without_gaps_over_attempts(user: User) -> None:
    run = make_run(user, "pending")
    for _ in range(2):
        held = claim(run)
        fenced_writes.update_run(
            held, [events.new_event(EventType.MESSAGE, text=str(n)) for n in range(2)]
        )
        fenced_writes.end_attempt(held, "requeue", told("requeue"))
    numbers = [number for number, _ in stored(run)["events"]]
    assert numbers == list(range(1, 9))
    assert stored(run)["event_count"] == 8


@pytest.mark.parametrize("enabled", [True, False])
def test_with_events_disabled_only_transitions_write_events(
    user: User, settings: Any, enabled: bool
) -> None:
    settings.AGENTIC_DJANGO_ENABLE_EVENTS = enabled
    held = claim(make_run(user, "pending"))
    fenced_writes.update_run(held, [events.new_event(EventType.MESSAGE, text="hi")])
    fenced_writes.end_attempt(
        held, "complete", [events.new_event(EventType.LOG, message="x"), *told("complete")]
    )
    types = [kind for _, kind in stored(held.run)["events"]]
    life = ["run.started", "run.completed"]
    assert types == (["run.started", "message", "log", "run.completed"] if enabled else life)
    assert [number for number, _ in stored(held.run)["events"]] == list(range(1, len(types) + 1))


# Claiming


@pytest.mark.parametrize("state", STATES)
def test_only_a_pending_run_is_claimed(user: User, state: str) -> None:
    run = make_run(user, state)
    before = stored(run)
    if state == "pending":
        assert claimed(run) == run
    else:
        assert claimed(run) is None
        assert stored(run) == before


def test_a_claim_raises_the_attempt_and_starts_a_lease(user: User, settings: Any) -> None:
    settings.AGENTIC_DJANGO_LEASE_SECONDS = 40
    run = make_run(user, "pending")
    claim(run)
    row: Any = AgentRun.objects.annotate(now=Now()).get(pk=run.pk)
    assert (row.attempt, row.status, row.holder) == (1, "running", process_name())
    assert row.lease_ends_at is not None
    assert timedelta(seconds=30) < row.lease_ends_at - row.now <= timedelta(seconds=40)
    assert stored(run)["events"] == [(1, "run.started")]


def test_a_run_is_claimed_once(user: User) -> None:
    run = make_run(user, "pending")
    assert claimed(run) is not None
    assert claimed(run) is None


def test_a_run_keeps_the_time_of_its_first_start(user: User) -> None:
    run = make_run(user, "pending")
    first = claim(run)
    started = AgentRun.objects.get(pk=run.pk).started_at
    fenced_writes.end_attempt(first, "requeue")
    claims.claim_run(str(run.pk))
    assert AgentRun.objects.get(pk=run.pk).started_at == started


def test_a_run_in_back_off_is_not_claimed(user: User) -> None:
    run = make_run(user, "pending")
    AgentRun.objects.filter(pk=run.pk).update(available_at=Now() + timedelta(hours=1))
    assert claimed(run) is None


def test_a_delivery_is_permission_to_work_and_not_an_order(user: User) -> None:
    done, waiting = make_run(user, "completed"), make_run(user, "pending")
    assert claimed(done) == waiting


def test_the_most_urgent_run_is_claimed_first_then_the_oldest(user: User) -> None:
    done = make_run(user, "completed")
    made = [make_run(user, "pending", priority=p) for p in (0, 5, 0, 5)]
    order = [made[n] for n in (1, 3, 0, 2)]
    assert [claimed(done) for _ in made] == order
    assert claimed(done) is None


def test_a_delivery_on_one_queue_claims_no_run_of_another(user: User, settings: Any) -> None:
    settings.AGENTIC_DJANGO_QUEUES = {"*": "default", "slow": "slow", "research": "slow"}
    quick, slow = (make_run(user, "completed", agent_key=key) for key in ("echo", "slow"))
    waiting_quick = make_run(user, "pending", agent_key="default")
    waiting_slow = make_run(user, "pending", agent_key="research")
    assert claimed(slow) == waiting_slow
    assert claimed(slow) is None
    assert claimed(quick) == waiting_quick


def test_a_delivery_of_a_deleted_run_does_nothing(user: User) -> None:
    make_run(user, "pending")
    assert claims.claim_run("00000000-0000-0000-0000-000000000000") is None


# One at a time in a session


@pytest.mark.parametrize("state", ["pending", "running", "waiting"])
def test_a_run_waits_for_earlier_unfinished_runs_of_its_session(user: User, state: str) -> None:
    session = make_session(user)
    make_run(user, state, session=session)
    AgentRun.objects.update(available_at=Now() + timedelta(hours=1))  # It keeps its place.
    later = make_run(user, "pending", session=session)
    assert claimed(later) is None


@pytest.mark.parametrize("state", ["completed", "failed", "cancelled", "timed_out"])
def test_a_run_does_not_wait_for_finished_runs(user: User, state: str) -> None:
    session = make_session(user)
    make_run(user, state, session=session)
    later = make_run(user, "pending", session=session)
    assert claimed(later) == later


def test_sessions_do_not_wait_for_each_other(user: User) -> None:
    make_run(user, "running", session=make_session(user))
    other = make_run(user, "pending", session=make_session(user))
    assert claimed(other) == other


def test_runs_without_a_session_do_not_wait_for_each_other(user: User) -> None:
    make_run(user, "running")
    other = make_run(user, "pending")
    assert claimed(other) == other


def test_a_delivery_of_a_run_that_waits_claims_the_one_before_it(user: User) -> None:
    session = make_session(user)
    first, second = (make_run(user, "pending", session=session) for _ in range(2))
    assert claimed(second) == first


# A cap on runs


def test_no_more_runs_are_claimed_than_the_limit_allows(user: User, settings: Any) -> None:
    settings.AGENTIC_DJANGO_CONCURRENCY_LIMIT = 2
    made = [make_run(user, "pending") for _ in range(3)]
    held = [claimed(made[0]) for _ in made]
    assert [run is not None for run in held] == [True, True, False]
    assert AgentRun.objects.pending().count() == 1
    assert sorted(RunSlot.objects.values_list("number", flat=True)) == [1, 2]


@pytest.mark.parametrize("verb", [*WORKERS_VERBS, "cancel"])
def test_a_slot_is_free_once_its_run_is_not_running(user: User, settings: Any, verb: str) -> None:
    settings.AGENTIC_DJANGO_CONCURRENCY_LIMIT = 1
    held = claim(make_run(user, "pending"))
    waiting = make_run(user, "pending")
    assert claimed(waiting) is None
    if verb == "cancel":
        fenced_writes.change_status(held.run, verb)
    else:
        fenced_writes.end_attempt(held, verb)
    assert claimed(waiting) == waiting


def test_a_deleted_run_releases_its_slot(user: User, settings: Any) -> None:
    settings.AGENTIC_DJANGO_CONCURRENCY_LIMIT = 1
    claims.claim_run(str(make_run(user, "pending").pk))
    AgentRun.objects.all().delete()
    assert claims.claim_run(str(make_run(user, "pending").pk)) is not None


def test_no_slot_is_acquired_without_a_limit(user: User) -> None:
    claims.claim_run(str(make_run(user, "pending").pk))
    assert not RunSlot.objects.exists()


# Sending


def test_a_signal_about_a_run_waits_for_the_commit(
    user: User, django_capture_on_commit_callbacks: Any
) -> None:
    seen: list[Any] = []

    def notice(run: AgentRun, **_: Any) -> None:
        seen.append(run.pk)

    signals.agent_run_started.connect(notice)
    try:
        with django_capture_on_commit_callbacks(execute=True):
            run = make_run(user, "pending")
            claims.claim_run(str(run.pk))
            assert seen == []
    finally:
        signals.agent_run_started.disconnect(notice)
    assert seen == [run.pk]


@pytest.mark.django_db(transaction=True)
def test_a_run_whose_transaction_is_rolled_back_is_not_enqueued(user: User) -> None:
    def submit() -> None:
        with transaction.atomic():
            dispatch.enqueue_on_commit(make_run(user, "pending"))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        submit()
    assert not AgentRun.objects.exists()


def test_a_run_stays_pending_if_the_queue_cannot_be_reached(
    user: User, monkeypatch: pytest.MonkeyPatch, django_capture_on_commit_callbacks: Any
) -> None:
    def refuse(*_: Any) -> None:
        raise ConnectionError("The queue is away.")

    monkeypatch.setattr("agentic_django.engine.queues.enqueue", refuse)
    run = make_run(user, "pending")
    with django_capture_on_commit_callbacks(execute=True):
        dispatch.enqueue_on_commit(run)
    run.refresh_from_db()
    assert (run.status, run.enqueued_at) == ("pending", None)


def test_the_next_run_of_a_session_is_enqueued_when_one_ends(
    user: User, django_capture_on_commit_callbacks: Any
) -> None:
    session = make_session(user)
    first, second = (make_run(user, "pending", session=session) for _ in range(2))
    with django_capture_on_commit_callbacks(execute=True):
        dispatch.enqueue_on_commit(first)
    second.refresh_from_db()
    assert second.status == "completed"
