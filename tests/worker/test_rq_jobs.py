"""Jobs that deliver runs are told to RQ by the batch, in the words of RQ's own workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import django_rq
import pytest
from django_tasks.signals import task_finished, task_started
from django_tasks_rq import Job
from rq import Queue, SimpleWorker
from rq.executions import ExecutionRegistry
from rq.timeouts import TimerDeathPenalty

from agentic_django.engine import claims, queues
from agentic_django.models import AgentRun
from agentic_django.worker.slots import WorkerSlots, WorkerState
from agentic_django.worker.sources.rq import SlotWorker
from tests.support.rows import make_run, make_session

pytestmark = pytest.mark.django_db(transaction=True)


class Stock(SimpleWorker):
    """A stock worker that performs in this process."""

    death_penalty_class = TimerDeathPenalty


@pytest.fixture
def queue(use_tasks: Callable[[str], None]) -> Queue:
    use_tasks("rq")
    queue: Queue = django_rq.get_queue("default", job_class=Job)
    queue.connection.flushall()
    return queue


@pytest.fixture
def worker(queue: Queue) -> Iterator[SlotWorker]:
    worker = SlotWorker(queue, WorkerState("default", WorkerSlots(50), is_burst=True))
    worker.register_birth()
    yield worker
    worker.close()


def sent(count: int = 1) -> list[str]:
    """Deliver runs that there are not; return the jobs' ids."""
    return [
        queues.enqueue(f"0000000{n}-0000-4000-8000-000000000000", "default").id
        for n in range(count)
    ]  # type: ignore[union-attr]


def taken(worker: SlotWorker, count: int) -> list[Any]:
    jobs = worker._dequeue(count)
    worker.deliveries.begin(jobs)
    return jobs


def kept(queue: Queue, job_id: str) -> dict[str, Any]:
    """What Redis keeps of a job that has ended."""
    job = Job.fetch(job_id, connection=queue.connection)
    return {
        "fields": set(queue.connection.hkeys(job.key)),
        "expires": 0 < queue.connection.ttl(job.key) <= 500,
        "status": job.get_status(),
        "result": [result.type for result in job.results()],
        "executions": ExecutionRegistry(job_id, queue.connection).get_job_ids(),
        "registries": [
            job_id in registry
            for registry in (
                queue.started_job_registry,
                queue.finished_job_registry,
                queue.failed_job_registry,
            )
        ],
    }


def test_what_is_kept_of_a_job_is_what_a_stock_worker_keeps(
    queue: Queue, worker: SlotWorker
) -> None:
    [by_stock] = sent()
    Stock([queue], connection=queue.connection, job_class=Job).work(burst=True)
    [by_us] = sent()
    worker.deliveries.end(taken(worker, 1))
    assert kept(queue, by_us) == kept(queue, by_stock)
    assert queue.connection.hget(worker.key, "successful_job_count") == b"1"


def test_what_is_kept_of_a_failure_is_what_a_stock_worker_keeps(
    queue: Queue, worker: SlotWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise ValueError("No.")

    [by_stock] = sent()
    with monkeypatch.context() as patch:
        patch.setattr("agentic_django.worker.executor.execute", fail)
        Stock([queue], connection=queue.connection, job_class=Job).work(burst=True)
    [by_us] = sent()
    [job] = taken(worker, 1)
    worker.deliveries.fail(job, ValueError("No."))
    assert kept(queue, by_us) == kept(queue, by_stock)
    assert "ValueError: No." in str(job.latest_result().exc_string)


def test_jobs_that_are_worked_on_are_told_and_nothing_is_left_between(
    queue: Queue, worker: SlotWorker
) -> None:
    ids = sent(5)
    jobs = taken(worker, 3)
    assert [job.id for job in jobs] == ids[:3]
    assert sorted(queue.started_job_registry.get_job_ids()) == sorted(ids[:3])
    assert {job.get_status(refresh=True) for job in jobs} == {"started"}
    assert queue.job_ids == ids[3:]
    assert queue.intermediate_queue.get_job_ids() == []


def test_jobs_outlive_what_rq_allows_without_a_word(queue: Queue, worker: SlotWorker) -> None:
    sent(2)
    jobs = taken(worker, 2)
    registry = queue.started_job_registry
    before = dict(queue.connection.zrange(registry.key, 0, -1, withscores=True))
    for name in before:
        queue.connection.zadd(registry.key, {name: 1})
    worker.deliveries.beat()
    after = dict(queue.connection.zrange(registry.key, 0, -1, withscores=True))
    assert after.keys() == before.keys()
    assert all(after[name] >= before[name] for name in before)
    worker.deliveries.end(jobs)
    worker.deliveries.beat()
    assert registry.get_job_ids() == []


def test_a_job_that_waits_for_a_delivery_is_sent_behind_it(
    queue: Queue, worker: SlotWorker
) -> None:
    [first] = sent()
    [delivery] = taken(worker, 1)
    second = Queue("default", connection=queue.connection).enqueue(print, depends_on=first)
    assert queue.job_ids == []
    worker.deliveries.end([delivery])
    assert queue.job_ids == [second.id]


def test_a_job_that_is_gone_is_passed_over(queue: Queue, worker: SlotWorker) -> None:
    ids = sent(3)
    queue.connection.delete(Job.key_for(ids[1]))
    assert [job.id for job in worker._dequeue(3)] == [ids[0], ids[2]]


def test_the_task_backends_signals_are_sent(queue: Queue, worker: SlotWorker) -> None:
    heard = []

    def hear(signal: Any, task_result: Any, **_: Any) -> None:
        heard.append((task_result.id, task_result.status, task_result.worker_ids))

    task_started.connect(hear)
    task_finished.connect(hear)
    [job_id] = sent()
    worker.deliveries.end(taken(worker, 1))
    assert heard == [(job_id, "RUNNING", [worker.name]), (job_id, "SUCCESSFUL", [worker.name])]


def test_runs_are_claimed_together(user: Any, no_queue: None) -> None:
    session = make_session(user)
    free = [make_run(user, "pending") for _ in range(3)]
    first, second = (make_run(user, "pending", session=session) for _ in range(2))
    gone = make_run(user, "cancelled")
    wanted = [*free, first, second, gone]
    claimed = claims.claim_delivered([str(run.pk) for run in wanted])
    assert {run.pk for run in claimed} == {run.pk for run in (*free, first)}
    assert {
        (run.status, run.attempt) for run in AgentRun.objects.filter(pk__in=[r.pk for r in claimed])
    } == {("running", 1)}
    assert claims.claim_delivered([str(run.pk) for run in wanted]) == []


def test_under_a_cap_no_runs_are_claimed_together(user: Any, no_queue: None, settings: Any) -> None:
    settings.AGENTIC_DJANGO_CONCURRENCY_LIMIT = 5
    assert claims.claim_delivered([str(make_run(user, "pending").pk)]) == []
