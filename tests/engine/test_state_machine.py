"""Whatever verbs come in whatever order, from whomever, a run's row and its events agree."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from django.contrib.auth.models import User
from django.db import transaction
from django.db.models.functions import Now
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from agentic_django.engine import claims, events, fenced_writes, lifecycle, recovery, transitions
from agentic_django.engine.attempt import Attempt
from agentic_django.engine.events import EventType
from agentic_django.engine.journal_entries import CallResult
from agentic_django.engine.lifecycle import Completion, Failure
from agentic_django.exceptions import Conflict, StaleAttempt
from agentic_django.models import ACTIVE, FINISHED, AgentRun, AgentSession
from tests.support.attempts import record

STATUS_AFTER: dict[str | None, str] = {
    None: "pending",
    **{str(step.event): str(step.target) for step in transitions.TRANSITIONS.values()},
}
"""In which state a run is, by the last event of its own life."""

pick = st.integers(min_value=0, max_value=100)


def _holds(row: AgentRun, attempt: Attempt) -> bool:
    return row.status == "running" and row.attempt == attempt.number


def _stand(row: AgentRun) -> tuple[str, int]:
    return row.status, row.event_count


class Runs(RuleBasedStateMachine):
    """Two conversations, runs without one, workers that hold runs or think so, and people."""

    def __init__(self) -> None:
        super().__init__()
        self.example = transaction.atomic()
        self.example.__enter__()
        user = User.objects.create_user(uuid4().hex)
        sessions = [AgentSession(owner=user, session_key=uuid4().hex) for _ in range(2)]
        for session in sessions:
            session.save()
        self.sessions: list[AgentSession | None] = [*sessions, None]
        self.runs: list[AgentRun] = []
        self.held: list[Attempt] = []
        self.attempts: Counter[Any] = Counter()
        self.keys = 0

    def teardown(self) -> None:
        """Forget the example."""
        transaction.set_rollback(True)
        self.example.__exit__(None, None, None)

    # What happens

    @rule(n=pick, priority=st.integers(min_value=0, max_value=1))
    def submit(self, n: int, priority: int) -> None:
        session = self.sessions[n % len(self.sessions)]
        run = AgentRun.objects.create(
            session=session, agent_key="echo", input_payload="Hello", priority=priority
        )
        self.runs.append(run)

    @rule(n=pick)
    def claim(self, n: int) -> None:
        if not self.runs:
            return
        due = set(AgentRun.objects.due().values_list("pk", flat=True))
        attempt = claims.claim_run(str(self.runs[n % len(self.runs)].pk))
        assert (attempt is None) == (not due)
        if attempt is not None:
            assert attempt.run.pk in due
            self.held.append(attempt)

    def worker(self, n: int, verb: Any, *args: Any) -> None:
        """Let a worker do something; it is refused exactly if it has lost its run."""
        if not self.held:
            return
        attempt = self.held[n % len(self.held)]
        row = AgentRun.objects.get(pk=attempt.run.pk)
        holds = _holds(row, attempt)
        try:
            with transaction.atomic():
                verb(attempt, *args)
        except StaleAttempt:
            assert not holds
            after = AgentRun.objects.get(pk=row.pk)
            assert vars(after).keys() == vars(row).keys()
            assert (after.attempt, *_stand(after)) == (row.attempt, *_stand(row))
        else:
            assert holds

    @rule(n=pick, told=st.integers(min_value=0, max_value=3))
    def record(self, n: int, told: int) -> None:
        self.keys += 1
        usage = {"requests": 1, "total_tokens": 5}
        value = {"output": [{"role": "assistant", "content": "Hm."}]}
        key = f"/-.echo#1:model:{self.keys}"
        result = CallResult(key, "model", "echo", value, 0.1, usage)
        self.worker(n, record, result, [events.new_event("message", text="Hm.")] * told)

    @rule(n=pick)
    def complete(self, n: int) -> None:
        items = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hm."}]
        self.worker(n, lambda held: lifecycle.complete([Completion(held, "Hm.", items, {})]))

    @rule(outputs=st.lists(st.sampled_from(["Hm.", "Oh.", True, 1, None]), min_size=2, max_size=4))
    def complete_together(self, outputs: list[Any]) -> None:
        """Let several runs end in one transaction: all do, or none."""
        items = [{"role": "user", "content": "Hello"}]
        held = {attempt.run.pk: attempt for attempt in self.held}.values()
        ended = [
            Completion(attempt, output, items, {})
            for attempt, output in zip(held, outputs, strict=False)
        ]
        if not ended:
            return
        before = {row.pk: row for row in AgentRun.objects.all()}
        hold = all(_holds(before[each.run.pk], each.attempt) for each in ended)
        try:
            lifecycle.complete(ended)
        except StaleAttempt:
            assert not hold
            for row in AgentRun.objects.all():
                assert (row.status, row.event_count) == _stand(before[row.pk])
        else:
            assert hold
            for each in ended:
                row = AgentRun.objects.get(pk=each.run.pk)
                kept = (type(row.final_output), row.final_output)
                assert kept == (type(each.output), each.output)

    @rule(n=pick, code=st.sampled_from(["internal", "timed_out"]))
    def fail(self, n: int, code: str) -> None:
        self.worker(n, lifecycle.fail, Failure(code))

    @rule(n=pick, after=st.sampled_from([0.0, 30.0]))
    def try_later(self, n: int, after: float) -> None:
        self.worker(n, lifecycle.retry_later, Failure("provider_busy"), after)

    @rule(n=pick)
    def hand_back(self, n: int) -> None:
        self.worker(n, lifecycle.release)

    @rule(n=pick)
    def suspend(self, n: int) -> None:
        self.worker(
            n,
            fenced_writes.end_attempt,
            "suspend",
            [events.new_event(EventType.RUN_WAITING, reason="?")],
        )

    @rule(n=pick, force=st.booleans())
    def lose(self, n: int, force: bool) -> None:
        if not force and self.held:
            run = self.held[n % len(self.held)].run
            held = AgentRun.objects.filter(pk=run.pk, status="running")
            held.update(lease_ends_at=Now() - timedelta(seconds=1))
        orphaned = AgentRun.objects.running() if force else AgentRun.objects.orphaned()
        count = orphaned.count()
        swept = recovery.sweep(force=force)
        assert swept.requeued + swept.failed == count

    def person(self, n: int, verb: Any, sources: Any) -> None:
        """Let a person do something; it is refused if the run is not in a state for it."""
        if not self.runs:
            return
        run = AgentRun.objects.get(pk=self.runs[n % len(self.runs)].pk)
        before = run.status
        with suppress(Conflict), transaction.atomic():
            verb(run)
            assert before in sources

    @rule(n=pick)
    def cancel(self, n: int) -> None:
        self.person(n, lifecycle.cancel, ACTIVE)

    @rule(n=pick, fresh=st.booleans())
    def retry(self, n: int, fresh: bool) -> None:
        self.person(n, lambda run: lifecycle.retry(run, fresh=fresh), FINISHED)

    @rule(n=pick)
    def resume(self, n: int) -> None:
        told = [events.new_event(EventType.RUN_RETRYING, attempt=1, reason="decided")]
        self.person(n, lambda run: fenced_writes.change_status(run, "resume", told), ("waiting",))

    @rule()
    def wait(self) -> None:
        """Let back-offs pass."""
        AgentRun.objects.filter(status="pending").update(available_at=Now())

    # What is true then

    @invariant()
    def rows_and_events_agree(self) -> None:
        for run in AgentRun.objects.prefetch_related("events"):
            told = sorted(run.events.all(), key=lambda event: event.sequence)
            assert [event.sequence for event in told] == list(range(1, run.event_count + 1))
            own = [event.event_type for event in told if event.event_type.startswith("run.")]
            assert STATUS_AFTER[own[-1] if own else None] == run.status
            assert own.count("run.started") == run.attempt
            assert own.count("run.completed") <= 1

    @invariant()
    def attempts_only_grow(self) -> None:
        for pk, attempt in AgentRun.objects.values_list("pk", "attempt"):
            assert attempt >= self.attempts[pk]
            self.attempts[pk] = attempt

    @invariant()
    def what_belongs_to_a_state_is_there_and_no_more(self) -> None:
        for run in AgentRun.objects.prefetch_related("items"):
            assert (run.lease_ends_at is not None) == (run.status == "running")
            assert (run.finished_at is not None) == run.is_finished
            assert bool(run.error_code) == (run.status in ("failed", "timed_out"))
            left = bool(run.items.all())
            began = run.session_id is not None and run.attempt > 0
            assert left == (run.is_finished and began)

    @invariant()
    def conversations_have_one_order(self) -> None:
        held = AgentRun.objects.filter(status__in=("running", "waiting"), session__isnull=False)
        for run in held:
            earlier = AgentRun.objects.filter(session=run.session_id, position__lt=run.position)
            assert not earlier.filter(status__in=ACTIVE).exists()
        assert max(Counter(held.values_list("session", flat=True)).values(), default=0) <= 1


@pytest.mark.django_db
@pytest.mark.usefixtures("no_queue")
def test_rows_and_events_agree_whatever_happens() -> None:
    run_state_machine_as_test(
        Runs,
        settings=settings(
            max_examples=25,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
