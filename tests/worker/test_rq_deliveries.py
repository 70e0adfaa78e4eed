"""The worker removes deliveries of claimed runs from RQ's queue; all other jobs stay in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import django_rq
import pytest
from django.contrib.auth.models import User
from django_tasks_rq import Job
from rq import Queue, SimpleWorker
from rq.suspension import resume, suspend
from rq.timeouts import TimerDeathPenalty

from agentic_django.concurrency.process_state import process
from agentic_django.engine import claims, queues, recovery
from agentic_django.models import AgentRun
from agentic_django.services import cancel_agent_run
from agentic_django.worker.backend import RunMayBeDue
from agentic_django.worker.sources.rq import Deliveries, RQNotifications, pending_among
from tests.project.test_infrastructure import write_group
from tests.support.attempts import sharing
from tests.support.processes import wait_until
from tests.support.rows import make_run, make_session

pytestmark = pytest.mark.django_db(transaction=True)


class StockWorker(SimpleWorker):
    """A stock worker that executes jobs in this process."""

    death_penalty_class = TimerDeathPenalty


@pytest.fixture
def queue(use_tasks: Callable[[str], None]) -> Queue:
    use_tasks("rq")
    queue: Queue = django_rq.get_queue("default", job_class=Job)
    queue.connection.flushall()
    return queue


@pytest.fixture
def deliveries(queue: Queue) -> Deliveries:
    return Deliveries(queue, pending_among)


def sent(user: User, count: int = 1, **columns: Any) -> list[AgentRun]:
    """Create pending runs and enqueue each. Their ``task_id`` is the id of the delivery."""
    made = [make_run(user, "pending", **columns) for _ in range(count)]
    for run in made:
        send(run)
    return made


def send(run: AgentRun) -> str:
    result = queues.enqueue(str(run.pk), run.agent_key)
    assert result is not None
    run.task_id = result.id
    AgentRun.objects.filter(pk=run.pk).update(task_id=result.id)
    return result.id


def plain(queue: Queue) -> str:
    """Enqueue a job without the task API, and return its id."""
    return Queue(queue.name, connection=queue.connection).enqueue(os.getpid).id


def job_keys(queue: Queue) -> set[bytes]:
    return set(queue.connection.keys("rq:job:*"))


def are_deleted(queue: Queue, ids: list[str]) -> bool:
    return not job_keys(queue) & {Job.key_for(job_id).encode() for job_id in ids}


# Removing


def test_a_removed_delivery_is_deleted_from_redis(
    queue: Queue, deliveries: Deliveries, user: User
) -> None:
    ids = [run.task_id for run in sent(user, 3)]
    deliveries.remove(ids[:2])
    assert queue.job_ids == ids[2:]
    wait_until(lambda: are_deleted(queue, ids[:2]), timeout=5)
    assert job_keys(queue) == {Job.key_for(ids[2]).encode()}
    assert queue.connection.ttl(Job.key_for(ids[2])) == -1


def test_a_delivery_that_a_stock_worker_executes_is_not_deleted(
    queue: Queue, deliveries: Deliveries, user: User
) -> None:
    [run] = sent(user)
    assert queue.pop_job_id() == run.task_id
    deliveries.remove([run.task_id])
    assert queue.connection.ttl(Job.key_for(run.task_id)) == -1


def test_a_stock_worker_skips_removed_deliveries_and_executes_the_next_job(
    queue: Queue, deliveries: Deliveries, user: User
) -> None:
    removed = sent(user, 2)
    deliveries.remove([run.task_id for run in removed])
    result = write_group.enqueue("made by a task")
    StockWorker([queue], connection=queue.connection, job_class=Job).work(burst=True)
    assert queue.finished_job_registry.get_job_ids() == [result.id]
    assert AgentRun.objects.pending().count() == 2


# Cleaning


def test_deliveries_whose_run_is_not_pending_are_removed(
    queue: Queue, deliveries: Deliveries, user: User
) -> None:
    claimed, cancelled, deleted, twice, pending = sent(user, 5)
    first = twice.task_id
    again = send(twice)
    AgentRun.objects.filter(pk=claimed.pk).update(status="running")
    cancel_agent_run(cancelled)
    deleted.delete()
    deliveries.clean()
    assert queue.job_ids == [first, pending.task_id, again]
    AgentRun.objects.filter(pk=twice.pk).update(status="completed")
    deliveries.clean()
    assert queue.job_ids == [pending.task_id]


def test_jobs_that_carry_no_run_stay_in_the_queue(
    queue: Queue, deliveries: Deliveries, user: User
) -> None:
    group = write_group.enqueue("a").id
    unreadable, job = plain(queue), plain(queue)
    unknown = queue.enqueue("agentic_django.tasks.execute", "not a run's id").id
    queue.connection.hset(Job.key_for(unreadable), "data", b"neither compressed nor pickled")
    [run] = sent(user)
    cancel_agent_run(run)
    deliveries.clean()
    assert queue.job_ids == [group, unreadable, job, unknown]


def test_an_entry_without_a_job_is_removed(queue: Queue, deliveries: Deliveries) -> None:
    gone, job = plain(queue), plain(queue)
    queue.connection.delete(Job.key_for(gone))
    deliveries.clean()
    assert queue.job_ids == [job]


def test_deliveries_after_many_other_jobs_are_removed_by_later_calls(
    queue: Queue, user: User
) -> None:
    deliveries = Deliveries(queue, pending_among, part_size=3)
    others = [plain(queue) for _ in range(7)]
    stale = sent(user, 8)
    last = plain(queue)
    AgentRun.objects.update(status="completed")
    deliveries.clean()
    assert len(queue.job_ids) == 16
    for _ in range(4):
        deliveries.clean()
    assert queue.job_ids == [*others, last]
    [early] = sent(user)
    early.delete()
    for _ in range(4):
        deliveries.clean()
    assert queue.job_ids == [*others, last]
    assert stale


def test_no_run_is_enqueued_again_because_deliveries_were_removed(
    queue: Queue, deliveries: Deliveries, user: User, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_LEASE_SECONDS = 0.03  # Runs that were sent before are overdue.
    sent(user, 6)
    AgentRun.objects.update(enqueued_at="2020-01-01T00:00Z")
    claimed = claims.claim_due("default", 2)
    deliveries.remove([attempt.run.task_id for attempt in claimed])
    deliveries.clean()
    assert queue.count == 4
    assert list(recovery.unqueued_runs()) == []


# Notifications


@pytest.fixture
def notifications(queue: Queue) -> Iterator[RQNotifications]:
    with sharing(records=1, host_code=1):
        found = RQNotifications("default")
        yield found
        found.stop()


def is_woken(seconds: float = 5) -> bool:
    woken = process.get(RunMayBeDue).wait(seconds)
    process.get(RunMayBeDue).clear()
    return woken


def test_the_claim_loop_is_woken_by_each_job_that_is_appended(
    queue: Queue, notifications: RQNotifications
) -> None:
    process.get(RunMayBeDue).clear()
    notifications.start()
    ids = []
    for _ in range(3):
        ids.append(plain(queue))
        assert is_woken()
        is_woken(0.3)  # Once more, for a run whose row was locked.
        assert not is_woken(0.3)
    assert queue.job_ids == ids


def test_claimed_runs_are_removed_and_the_queue_is_cleaned(
    queue: Queue, notifications: RQNotifications, user: User
) -> None:
    claimed, cancelled, pending = sent(user, 3)
    cancel_agent_run(cancelled)
    notifications.start()
    notifications.claimed([claimed.task_id])
    wait_until(lambda: queue.job_ids == [pending.task_id], timeout=5)


def test_the_deliveries_of_all_claimed_runs_are_removed_when_the_worker_stops(
    queue: Queue, notifications: RQNotifications, user: User
) -> None:
    ids = [run.task_id for run in sent(user, 2)]
    notifications.claimed(ids[:1])
    notifications.claimed(ids[1:])
    notifications.stop()
    assert queue.job_ids == []


def test_rq_suspend_and_resume_apply_to_the_worker(
    queue: Queue, notifications: RQNotifications
) -> None:
    suspend(queue.connection)
    notifications.start()
    assert notifications.is_suspended
    resume(queue.connection)
    wait_until(lambda: not notifications.is_suspended, timeout=5)


def test_notifications_continue_after_redis_has_closed_the_connections(
    queue: Queue, notifications: RQNotifications, user: User
) -> None:
    notifications.start()
    assert queue.connection.client_kill_filter(skipme=True) >= 1
    [run] = sent(user)
    notifications.claimed([run.task_id])
    wait_until(lambda: queue.job_ids == [], timeout=5)
    process.get(RunMayBeDue).clear()
    plain(queue)
    assert is_woken()


# Claiming


def test_due_runs_are_claimed_in_one_batch_and_one_run_per_session(
    user: User, no_queue: None
) -> None:
    session = make_session(user)
    free = [make_run(user, "pending") for _ in range(3)]
    first, _ = (make_run(user, "pending", session=session) for _ in range(2))
    make_run(user, "cancelled")
    claimed = claims.claim_due("default", 20)
    ids = {attempt.run.pk for attempt in claimed}
    assert ids == {run.pk for run in (*free, first)}
    rows = AgentRun.objects.filter(pk__in=ids)
    assert set(rows.values_list("status", "attempt")) == {("running", 1)}
    assert claims.claim_due("default", 20) == []
