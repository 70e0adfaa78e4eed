"""Lost runs, and those that the queue has lost, are found by whoever looks first."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections, transaction
from django.db.models import F
from django.db.models.functions import Now
from django.tasks import task_backends
from django.utils import timezone
from django_rq import get_queue
from django_tasks_rq import Job
from rq import SimpleWorker
from rq.job import JobStatus

from agentic_django.concurrency.process_state import process
from agentic_django.engine import dispatch, recovery
from agentic_django.models import AgentRun, SweepMark
from agentic_django.services import cancel_agent_run, submit_agent_run
from tests.support.attempts import attempt, finish, numbered
from tests.support.processes import Project, wait_until
from tests.support.rows import make_run, make_session

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def rq(use_tasks: Any, settings: Any) -> Any:
    """RQ as the queue, with nobody who works."""
    use_tasks("rq")


@pytest.fixture
def quickly(rq: None, settings: Any) -> None:
    """Processes that look several times a second."""
    settings.AGENTIC_DJANGO_LEASE_SECONDS = 0.3


def an_hour_later() -> None:
    """Let the time pass for which a sweep has patience."""
    hour = timedelta(hours=1)
    AgentRun.objects.update(enqueued_at=F("enqueued_at") - hour, updated_at=F("updated_at") - hour)


def submit(user: User, text: str = "Hello", **options: Any) -> AgentRun:
    run = submit_agent_run(owner=user, input_payload=text, **options)
    process.stop()  # A test says itself when to look.
    run.refresh_from_db()
    return run


def queued() -> list[str]:
    """Return the ids of the runs in the queue."""
    return [job.args[0] if job.args else job.kwargs["run_id"] for job in get_queue().jobs]


def lost_run(user: User, **columns: Any) -> AgentRun:
    run = make_run(user, "running", **columns)
    AgentRun.objects.filter(pk=run.pk).update(lease_ends_at=Now() - timedelta(seconds=1))
    return run


# Lost runs


@pytest.mark.usefixtures("no_queue")
@pytest.mark.parametrize(
    ("mode", "status"), [("requeue", "pending"), ("fail", "failed"), ("ignore", "running")]
)
def test_the_setting_says_what_becomes_of_a_lost_run(
    user: User, settings: Any, mode: str, status: str
) -> None:
    settings.AGENTIC_DJANGO_STARTUP_RECOVERY = mode
    run = lost_run(user)
    recovery.sweep()
    run.refresh_from_db()
    assert run.status == status
    assert numbered(run) == {"pending": ["run.retrying"], "failed": ["run.failed"]}.get(status, [])


@pytest.mark.usefixtures("no_queue")
def test_a_lease_that_is_renewed_in_between_is_respected(
    user: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = lost_run(user)
    find = recovery.orphaned_runs

    def found_and_renewed(**options: Any) -> Any:
        found = find(**options)
        AgentRun.objects.update(lease_ends_at=Now() + timedelta(seconds=60))
        return found

    monkeypatch.setattr(recovery, "orphaned_runs", found_and_renewed)
    assert recovery.sweep() == recovery.SweepResult()
    run.refresh_from_db()
    assert run.status == "running"


@pytest.mark.usefixtures("no_queue")
def test_many_sweeps_at_once_do_it_once(user: User) -> None:
    run = lost_run(user)
    barrier, swept = threading.Barrier(8), []

    def sweep() -> None:
        barrier.wait()
        swept.append(recovery.sweep())
        connections.close_all()

    threads = [threading.Thread(target=sweep) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(one.requeued for one in swept) == 1
    assert numbered(run) == ["run.retrying"]


@pytest.mark.usefixtures("no_queue")
@pytest.mark.parametrize("minutes", [-10, 10])
def test_a_clock_that_is_ten_minutes_off_changes_nothing(
    user: User, scripted: Any, monkeypatch: pytest.MonkeyPatch, minutes: int
) -> None:
    clock, now = time.time, timezone.now
    monkeypatch.setattr(time, "time", lambda: clock() + 60 * minutes)
    monkeypatch.setattr(timezone, "now", lambda: now() + timedelta(minutes=minutes))
    held, lost = make_run(user, "running"), lost_run(user)
    assert recovery.sweep().requeued == 1
    held.refresh_from_db()
    lost.refresh_from_db()
    assert (held.status, lost.status) == ("running", "pending")
    scripted("default", "Done.")
    run = finish(make_run(user, "pending", agent_key="default"))
    assert run.final_output == "Done."
    assert run.finished_at is not None
    assert abs((run.finished_at - now()).total_seconds()) < 60
    assert 0 <= run.active_seconds < 60


@pytest.mark.usefixtures("no_queue")
def test_a_run_that_was_lost_alone_too_often_fails(user: User, settings: Any) -> None:
    settings.AGENTIC_DJANGO_MAX_ATTEMPTS = 2
    alone = lost_run(user, failures=1, holder="host:1")
    lost_run(user, failures=0, holder="host:2")
    swept = recovery.sweep()
    assert (swept.failed, swept.requeued) == (1, 1)
    alone.refresh_from_db()
    assert (alone.status, alone.error_code) == ("failed", "lost")


@pytest.mark.usefixtures("no_queue")
def test_one_run_that_ends_its_process_does_not_make_those_fail_that_fall_with_it(
    user: User, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_MAX_ATTEMPTS = 2
    fallen = [lost_run(user, failures=4, holder="host:1") for _ in range(3)]
    assert recovery.sweep().requeued == 3
    for run in fallen:
        AgentRun.objects.filter(pk=run.pk).update(
            status="running", holder="host:2", lease_ends_at=Now() - timedelta(seconds=1)
        )
    assert recovery.sweep().failed == 3  # For good: one of them may be to blame.


# What the queue lost


def test_what_the_queue_has_is_not_sent_again(user: User, rq: None) -> None:
    sent = [submit(user, f"{n}") for n in range(5)]
    an_hour_later()
    assert recovery.sweep().enqueued == 0
    assert sorted(queued()) == sorted(str(run.pk) for run in sent)


def test_a_queue_that_was_emptied_is_filled_again_once(user: User, rq: None, valkey: Any) -> None:
    sent = [submit(user, f"{n}") for n in range(5)]
    valkey.flush()
    an_hour_later()
    assert [recovery.sweep().enqueued for _ in range(3)] == [5, 0, 0]
    an_hour_later()
    assert recovery.sweep().enqueued == 0
    assert sorted(queued()) == sorted(str(run.pk) for run in sent)


def test_an_enqueue_that_was_lost_is_made_up_for(
    user: User, rq: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as broken:
        broken.setattr(dispatch, "_enqueue", lambda run: None)
        run = submit(user)
    assert recovery.sweep().enqueued == 0  # The sender may be just about to do it.
    an_hour_later()
    assert recovery.sweep().enqueued == 1
    assert queued() == [str(run.pk)]


def test_a_delivery_that_came_to_nothing_is_made_again(user: User, rq: None) -> None:
    run = submit(user)
    queue = get_queue(job_class=Job)
    SimpleWorker([queue], connection=queue.connection, job_class=Job).work(burst=True)
    run.refresh_from_db()
    assert run.status == "completed"
    again = AgentRun.objects.filter(pk=run.pk)  # As if that delivery had found it not yet due.
    again.update(status="pending", available_at=Now(), finished_at=None)
    an_hour_later()
    assert recovery.sweep().enqueued == 1
    assert attempt(run).status == "completed"
    assert recovery.sweep().enqueued == 0


def test_a_delivery_that_died_before_its_claim_is_made_again(user: User, rq: None) -> None:
    run = submit(user)
    queue = get_queue(job_class=Job)
    [job] = queue.jobs
    job.set_status(JobStatus.STARTED)
    queue.remove(job)
    assert recovery.sweep().enqueued == 0  # It may be just about to claim the run.
    an_hour_later()
    assert recovery.sweep().enqueued == 1
    assert queued() == [str(run.pk)]


def test_a_run_that_its_conversation_holds_back_is_not_sent(user: User, rq: None) -> None:
    session = make_session(user)
    AgentRun.objects.create(session=session, agent_key="echo", input_payload="1")
    AgentRun.objects.filter(session=session).update(
        status="running", attempt=1, lease_ends_at=Now() + timedelta(seconds=60)
    )
    AgentRun.objects.create(session=session, agent_key="echo", input_payload="2")
    an_hour_later()
    assert recovery.sweep().enqueued == 0


def test_a_queue_that_is_away_does_not_end_the_looking(
    user: User, quickly: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = submit(user)
    an_hour_later()
    asked: list[str] = []

    def get_result(backend: Any, result_id: str) -> Any:
        asked.append(result_id)
        raise ConnectionError("The queue is away.")

    with monkeypatch.context() as broken:
        broken.setattr(type(task_backends["default"]), "get_result", get_result)
        recovery.start_sweeper()
        wait_until(lambda: len(asked) > 2, timeout=10)
        assert "cannot be recovered now" in caplog.text
    cancel_agent_run(run)
    wait_until(lambda: not process.get(recovery.Sweeper).is_running, timeout=10)


# Who looks, and when


def test_looking_ends_with_the_last_unfinished_run_and_begins_again(
    user: User, quickly: None
) -> None:
    run = submit_agent_run(owner=user, input_payload="Hello")
    assert process.get(recovery.Sweeper).is_running
    attempt(run)
    wait_until(lambda: not process.get(recovery.Sweeper).is_running, timeout=10)
    lost = lost_run(user)
    recovery.start_sweeper()
    wait_until(lambda: AgentRun.objects.get(pk=lost.pk).status == "pending", timeout=10)


def test_one_look_at_a_time_is_enough(user: User, rq: None) -> None:
    def statuses_after_sweep() -> list[str]:
        recovery.sweep_if_due()
        return list(AgentRun.objects.order_by("created_at").values_list("status", flat=True))

    lost_run(user)
    assert statuses_after_sweep() == ["pending"]
    lost_run(user)
    assert statuses_after_sweep() == ["pending", "running"]
    SweepMark.objects.update(swept_at=Now() - timedelta(seconds=6))
    assert statuses_after_sweep() == ["pending", "pending"]
    lost_run(user)
    assert statuses_after_sweep() == ["pending", "pending", "running"]


def test_each_attempt_looks_when_it_ends(user: User, rq: None) -> None:
    lost = lost_run(user)
    run = submit(user)
    an_hour_later()
    attempt(run)
    lost.refresh_from_db()
    assert lost.status == "pending"
    assert str(lost.pk) in queued()


# Rows that somebody holds


@contextmanager
def held_by_another(run: AgentRun) -> Iterator[None]:
    """Let another connection hold a run's row in a transaction, as a paused process does."""
    holds, release = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            AgentRun.objects.filter(pk=run.pk).update(activity="paused")
            holds.set()
            release.wait(20)
        connections.close_all()

    thread = threading.Thread(target=hold)
    thread.start()
    assert holds.wait(10)
    try:
        yield
    finally:
        release.set()
        thread.join()


@pytest.mark.postgres
def test_a_row_that_a_paused_process_holds_does_not_keep_others_from_being_found(
    in_project: Project, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_LEASE_SECONDS = 0.3
    user = User.objects.create_user("ada")
    held, lost = lost_run(user), lost_run(user)
    pending = make_run(user, "pending")
    an_hour_later()
    with held_by_another(held), held_by_another(pending):
        began = time.monotonic()
        assert recovery.sweep().requeued == 1
        assert time.monotonic() - began < 5
    lost.refresh_from_db()
    assert lost.status == "pending"
    swept = recovery.sweep()
    assert swept.requeued == 1
    assert swept.enqueued >= 1
