"""Writes of several runs share a transaction, and a write that fails or waits affects no other."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models.functions import Now

from agentic_django import signals
from agentic_django.concurrency import event_loop, executors
from agentic_django.concurrency.batching import Batcher, WouldBlock
from agentic_django.engine import claims, drafts, events, journal_entries, lifecycle
from agentic_django.engine.attempt import Attempt
from agentic_django.engine.journal_entries import CallResult, Entry
from agentic_django.engine.lifecycle import Completion
from agentic_django.exceptions import StaleAttempt
from agentic_django.models import (
    AgentEvent,
    AgentRun,
    AgentSession,
    AgentSessionItem,
    StepCheckpoint,
)
from tests.support.attempts import numbered, sharing
from tests.support.processes import Project, wait_until
from tests.support.rows import make_run, make_session

# Batches


class Locked(Exception):
    """An entry is locked, and the writer must not wait."""


class NumberWriter:
    """Writes numbers; a negative one fails, a 0 waits for ``may_end``, a 7 for ``is_unlocked``."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.written: list[list[int]] = []
        self.failed: list[BaseException] = []
        self.may_end, self.is_unlocked = threading.Event(), threading.Event()
        self.batches = Batcher(self.write, pool.submit, self.failed.append)

    def write(self, numbers: Sequence[int], /, *, waits: bool = True) -> list[int]:
        self.written.append(list(numbers))
        if 0 in numbers:
            assert self.may_end.wait(20)
        if min(numbers) < 0:
            raise ValueError(f"{numbers} cannot be written.")
        if 7 in numbers and not self.is_unlocked.is_set():
            if not waits:
                raise Locked
            assert self.is_unlocked.wait(20)
        return [number * 10 for number in numbers]

    def keep_busy(self) -> None:
        """Occupy all writers until ``may_end`` is set."""
        for count in (1, 2):
            self.batches.add(0)
            wait_until(lambda: len(self.written) == count, what="a batch")  # noqa: B023 - at once


@pytest.fixture
def numbers() -> Iterator[NumberWriter]:
    with ThreadPoolExecutor(8) as pool:
        numbers = NumberWriter(pool)
        yield numbers
        numbers.may_end.set()
        numbers.is_unlocked.set()


def test_an_entry_is_written_at_once_while_the_batcher_is_idle(numbers: NumberWriter) -> None:
    assert [numbers.batches.add(n).result(20) for n in (1, 2)] == [10, 20]
    assert numbers.written == [[1], [2]]


def test_waiting_entries_are_written_together_and_each_gets_its_own_result(
    numbers: NumberWriter,
) -> None:
    numbers.keep_busy()
    futures = [numbers.batches.add(n) for n in (1, 2, 3)]
    numbers.may_end.set()
    assert [future.result(20) for future in futures] == [10, 20, 30]
    assert numbers.written[2:] == [[1, 2, 3]]


def test_a_batch_has_a_maximum_size(numbers: NumberWriter) -> None:
    numbers.keep_busy()
    futures = [numbers.batches.add(n) for n in range(101, 201)]
    numbers.may_end.set()
    assert [future.result(20) for future in futures] == [n * 10 for n in range(101, 201)]
    assert sorted(n for batch in numbers.written[2:] for n in batch) == list(range(101, 201))
    assert 4 <= len(numbers.written[2:]) < 10


def test_an_entry_that_cannot_be_written_does_not_affect_others(numbers: NumberWriter) -> None:
    numbers.keep_busy()
    good, bad, other = (numbers.batches.add(n) for n in (1, -2, 3))
    numbers.may_end.set()
    assert (good.result(20), other.result(20)) == (10, 30)
    with pytest.raises(ValueError, match=r"\[-2\] cannot be written"):
        bad.result(20)
    errors = [str(error) for error in numbers.failed]
    assert errors == ["[1, -2, 3] cannot be written.", "[-2] cannot be written."]


def test_an_entry_that_waits_for_a_lock_does_not_delay_others(numbers: NumberWriter) -> None:
    numbers.keep_busy()
    slow, other = numbers.batches.add(7), numbers.batches.add(8)
    numbers.may_end.set()
    assert other.result(20) == 80
    locked = [numbers.batches.add(7) for _ in range(3)]
    assert numbers.batches.add(9).result(20) == 90
    numbers.is_unlocked.set()
    assert [future.result(20) for future in (slow, *locked)] == [70] * 4


def test_a_cancelled_entry_is_not_written(numbers: NumberWriter) -> None:
    numbers.keep_busy()
    cancelled, wanted = numbers.batches.add(1), numbers.batches.add(2)
    assert cancelled.cancel()
    numbers.may_end.set()
    assert wanted.result(20) == 20
    assert numbers.written[2:] == [[2]]


# Writes of attempts


@pytest.fixture
def hold(user: User) -> Callable[..., list[Attempt]]:
    """Make attempts of this process, each of a session of its own."""

    def make(count: int) -> list[Attempt]:
        for _ in range(count):
            make_run(user, "pending", session=make_session(user))
        return claims.claim_due("default", count)

    return make


def entry(attempt: Attempt, key: str, *texts: str) -> Entry:
    result = CallResult(key, "model", "echo", {"said": texts}, 0.5, {"requests": 1})
    return Entry.of(attempt, result, [events.new_event("message", text=text) for text in texts])


@pytest.mark.django_db
@pytest.mark.usefixtures("no_queue")
def test_results_of_several_runs_are_written_each_with_its_events(hold: Any) -> None:
    one, two = hold(2)
    rows = journal_entries.write_entries([entry(one, "a", "Hm."), entry(two, "b", "Oh.", "I see.")])
    assert [row.run_id for row in rows] == [one.run.pk, two.run.pk]
    assert all(StepCheckpoint.objects.get(pk=row.pk).run_id == row.run_id for row in rows)
    assert numbered(one.run) == ["run.started", "message"]
    assert numbered(two.run) == ["run.started", "message", "message"]
    for run in (one.run, two.run):
        assert AgentRun.objects.get(pk=run.pk).event_count == run.event_count


@pytest.mark.django_db
@pytest.mark.usefixtures("no_queue")
def test_calls_of_one_run_that_ended_together_are_recorded_together(hold: Any) -> None:
    run, other = hold(2)
    journal_entries.write_entries(
        [entry(run, "a", "One."), entry(other, "a"), entry(run, "b", "Two.")]
    )
    assert [row.key for row in run.run.checkpoints.order_by("id")] == ["a", "b"]
    texts = run.run.events.filter(event_type="message").order_by("sequence").values_list("payload")
    assert [payload["text"] for (payload,) in texts] == ["One.", "Two."]


@pytest.mark.django_db
@pytest.mark.usefixtures("no_queue")
def test_if_one_attempt_is_stale_nothing_of_the_batch_is_written(hold: Any) -> None:
    kept, lost = hold(2)
    AgentRun.objects.filter(pk=lost.run.pk).update(attempt=2)
    with pytest.raises(StaleAttempt):
        journal_entries.write_entries([entry(kept, "a", "Hm."), entry(lost, "a", "Hm.")])
    assert not StepCheckpoint.objects.exists()
    assert AgentEvent.objects.count() == 2
    assert (kept.run.event_count, lost.run.event_count) == (1, 1)
    journal_entries.write_entries([entry(kept, "a", "Hm.")])
    assert numbered(kept.run) == ["run.started", "message"]


@pytest.mark.django_db
@pytest.mark.usefixtures("no_queue")
def test_entries_that_were_rolled_back_are_written_by_the_next_call(
    hold: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, other = hold(2)
    intent = journal_entries.record_intent(run, "pay", "tool", "pay")
    paid = Entry.of(run, CallResult("pay", "tool", "pay", "Paid.", 0.5), [], intent)
    told = entry(other, "a", "Hm.")
    told.has_draft = True
    with monkeypatch.context() as broken:
        broken.setattr(drafts, "delete_draft", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            journal_entries.write_entries([paid, told])
    assert StepCheckpoint.objects.get().is_intent
    journal_entries.write_entries([paid])
    journal_entries.write_entries([told])
    assert StepCheckpoint.objects.get(run=run.run).result == "Paid."
    assert StepCheckpoint.objects.get(run=other.run).key == "a"


@pytest.mark.django_db
@pytest.mark.usefixtures("no_queue")
@pytest.mark.parametrize("order", [1, -1])
def test_a_stale_attempt_does_not_write_together_with_the_present_one(
    hold: Any, order: int
) -> None:
    (stale,) = hold(1)
    AgentRun.objects.filter(pk=stale.run.pk).update(attempt=2)
    present = Attempt(AgentRun.objects.get(pk=stale.run.pk))
    with pytest.raises(StaleAttempt):
        journal_entries.write_entries(
            [entry(stale, "a", "Stale."), entry(present, "b", "Present.")][::order]
        )
    assert not StepCheckpoint.objects.exists()


@pytest.mark.django_db
@pytest.mark.usefixtures("no_queue")
def test_a_batch_does_not_wait_for_a_thread_that_writes_one_of_its_runs(hold: Any) -> None:
    one, two = hold(2)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(two.lock.acquire).result(20)
        with pytest.raises(WouldBlock):
            journal_entries.write_entries([entry(one, "a"), entry(two, "a")], waits=False)
        pool.submit(two.lock.release).result(20)
    assert not StepCheckpoint.objects.exists()
    assert len(journal_entries.write_entries([entry(one, "a"), entry(two, "a")], waits=False)) == 2


@pytest.mark.django_db
@pytest.mark.usefixtures("no_queue")
@pytest.mark.parametrize("waits", [True, False])
def test_runs_that_complete_together_keep_their_own_results(hold: Any, waits: bool) -> None:
    outputs = [True, 1, 1.0, "1", None, {"a": [True]}, {"a": [1]}, "Same.", "Same."]
    held = hold(len(outputs))
    lifecycle.complete(
        [
            Completion(run, output, [{"role": "user", "content": f"{n}"}] * n, {"requests": n})
            for n, (run, output) in enumerate(zip(held, outputs, strict=True))
        ],
        waits=waits,
    )
    for n, (run, output) in enumerate(zip([each.run for each in held], outputs, strict=True)):
        row = AgentRun.objects.get(pk=run.pk)
        assert (row.status, repr(row.final_output)) == ("completed", repr(output))
        assert row.usage == {"requests": n}
        assert row.active_seconds == run.active_seconds > 0
        assert row.finished_at is not None
        assert AgentSessionItem.objects.filter(run=run).count() == row.session.item_count == n  # type: ignore[union-attr]
        assert numbered(run) == ["run.started", "run.completed"]


@pytest.mark.django_db
@pytest.mark.usefixtures("no_queue")
def test_attempts_with_different_numbers_complete_together(hold: Any) -> None:
    first, again = hold(2)
    AgentRun.objects.filter(pk=again.run.pk).update(attempt=3)
    again.number = 3
    lifecycle.complete([Completion(run, "Done.", [], {}) for run in (first, again)])
    assert set(AgentRun.objects.values_list("status", flat=True)) == {"completed"}


@pytest.mark.django_db
@pytest.mark.usefixtures("no_queue")
def test_a_receiver_that_calls_exit_does_not_prevent_signals_of_other_runs(
    hold: Any, django_capture_on_commit_callbacks: Any, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[Any] = []

    def receive(run: AgentRun, **_: Any) -> None:
        told.append(run)
        if len(told) == 1:
            sys.exit("Enough.")

    held = hold(3)
    signals.agent_run_completed.connect(receive)
    try:
        with django_capture_on_commit_callbacks(execute=True):
            lifecycle.complete([Completion(run, "Done.", [], {}) for run in held])
    finally:
        signals.agent_run_completed.disconnect(receive)
    assert told == [each.run for each in held]
    assert "called exit()" in caplog.text


@pytest.fixture
def pools(in_project: Project) -> Iterator[executors.ThreadPools]:
    with sharing(records=4, host_code=2) as pools:
        yield pools


def _await_write(entry: Entry) -> Callable[[], Any]:
    async def work() -> StepCheckpoint:
        return await event_loop.write_batched(journal_entries.write_entries, entry)

    return work


def _await_end(outcome: Completion) -> Callable[[], Any]:
    async def work() -> None:
        await event_loop.write_batched(lifecycle.complete, outcome)

    return work


@pytest.mark.postgres
def test_a_locked_session_does_not_delay_the_completion_of_other_runs(
    in_project: Project, pools: executors.ThreadPools
) -> None:
    owner = User.objects.create_user("ada")
    for _ in range(5):
        make_run(owner, "pending", session=make_session(owner))
    held = claims.claim_due("default", 5)
    said = [{"role": "user", "content": "Hello"}]
    with transaction.atomic():
        AgentSession.objects.filter(runs__in=[each.run for each in held[:3]]).update(
            updated_at=Now()
        )
        ends = [
            event_loop.start_on_loop(_await_end(Completion(run, "Done.", said, {}))) for run in held
        ]
        for future in ends[3:]:
            future.result(20)
        assert not any(future.done() for future in ends[:3])
    for future in ends:
        future.result(20)
    assert AgentRun.objects.filter(status="completed").count() == 5


@pytest.mark.postgres
def test_a_locked_run_does_not_delay_the_records_of_other_runs(
    in_project: Project, pools: executors.ThreadPools
) -> None:
    owner = User.objects.create_user("ada")
    for _ in range(5):
        make_run(owner, "pending", session=make_session(owner))
    one, two, *others = claims.claim_due("default", 5)
    with transaction.atomic():
        AgentRun.objects.filter(pk__in=[one.run.pk, two.run.pk]).update(updated_at=Now())
        stuck = [entry(one, "a"), entry(one, "b"), entry(two, "a")]
        waiting = [event_loop.start_on_loop(_await_write(each)) for each in stuck]
        for n in range(5):
            written = [event_loop.start_on_loop(_await_write(entry(run, f"{n}"))) for run in others]
            assert [future.result(20).run for future in written] == [each.run for each in others]
        assert not any(future.done() for future in waiting)
    assert [future.result(20).run for future in waiting] == [one.run, one.run, two.run]


def test_without_thread_pools_each_entry_is_written_alone() -> None:
    written: list[list[int]] = []

    def write(entries: Sequence[int], /, *, waits: bool = True) -> list[int]:
        assert waits
        written.append(list(entries))
        return [threading.get_ident() for _ in entries]

    async def work() -> list[int]:
        return await asyncio.gather(
            *(event_loop.write_batched(write, n, joined=True) for n in (1, 2))
        )

    assert event_loop.run_on_loop(work) == [threading.get_ident()] * 2
    assert sorted(written) == [[1], [2]]
