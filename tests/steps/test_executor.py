"""Pipelines: each step is recorded once, and what it changes is kept or forgotten as a whole."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from django.contrib.auth.models import Group, User
from django.db import Error
from django.utils.translation import gettext_lazy

from agentic_django import registry, signals
from agentic_django.engine import fenced_writes, heartbeat, journal_entries
from agentic_django.engine.events import EVENT_KINDS, EventType
from agentic_django.engine.journal_entries import Entry
from agentic_django.exceptions import AgenticError, BadSetting, UserError
from agentic_django.models import AgentRun
from agentic_django.runtime import RunContext
from agentic_django.services import cancel_agent_run, retry_agent_run, submit_agent_run
from agentic_django.steps import (
    ExecutionState,
    Parallel,
    Pipeline,
    Step,
    StepCancelledError,
    StepExecutionError,
    StepExecutor,
    StepTimeoutError,
)
from tests.support.attempts import AWAY, attempt, finish, payloads
from tests.support.rows import make_session

pytestmark = pytest.mark.django_db

type Carry = Callable[..., AgentRun]
type Register = Callable[..., None]
type Calls = list[str]


def does(calls: Calls, name: str, *outcomes: Any, **options: Any) -> Step:
    """Return a step that notes each call and comes to these outcomes, the last one for ever.

    An outcome that is an exception is raised; before it, the state is changed.
    """
    left = list(outcomes or [f"{name} is done"])

    async def fn(ctx: RunContext, state: dict[str, Any]) -> Any:
        calls.append(name)
        state.setdefault("seen", []).append(name)
        outcome = left.pop(0) if len(left) > 1 else left[0]
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    return Step(name, fn, **{"retry_delay": 0.0, **options})


def told(run: AgentRun, *kinds: str) -> list[tuple[str, str]]:
    """Return what was told of a run's steps, in order."""
    rows = run.events.filter(event_type__startswith="step.").order_by("sequence")
    pairs = [(row.event_type.removeprefix("step."), row.payload["step_name"]) for row in rows]
    return [pair for pair in pairs if not kinds or pair[0] in kinds]


def percents(run: AgentRun) -> list[int]:
    """Return the progress that was told, in order."""
    return [payload["progress_percent"] for payload in payloads(run, "progress.update")]


@pytest.fixture
def calls() -> Calls:
    return []


@pytest.fixture
def resumed(register: Register, carry: Carry) -> Carry:
    """Carry a pipeline to its failure, and another one (what a deploy made of it) from there."""

    def resumed(before: Pipeline, after: Pipeline | None = None, **columns: Any) -> AgentRun:
        register(before)
        run = carry("work", **columns)
        assert run.status == "failed", run.status
        register(after or before)
        retry_agent_run(run)
        return finish(run)

    return resumed


# Steps


def test_a_pipeline_completes_with_its_steps_results_by_name(
    register: Register, carry: Carry, calls: Calls
) -> None:
    register(Pipeline([does(calls, "fetch", [1, 2]), does(calls, "save", {"rows": 2})]))
    run = carry("work")
    assert run.status == "completed"
    assert run.final_output == {"fetch": [1, 2], "save": {"rows": 2}}
    assert calls == ["fetch", "save"]


def test_the_state_starts_as_the_params_and_is_passed_from_step_to_step(
    register: Register, carry: Carry
) -> None:
    async def add(ctx: RunContext, state: dict[str, Any]) -> int:
        state["sum"] = state.get("sum", state["start"]) + 1
        return state["sum"]

    register(Pipeline([Step("one", add), Step("two", add)]))
    run = carry("work", context={"start": 40})
    assert run.final_output == {"one": 41, "two": 42}
    assert run.context == {"start": 40}


def test_a_synchronous_step_uses_the_orm_on_the_runs_thread(
    register: Register, carry: Carry
) -> None:
    def save(ctx: RunContext, state: dict[str, Any]) -> int:
        Group.objects.create(name=ctx.user.username)
        return Group.objects.count()

    register(Pipeline([Step("save", save)]))
    assert carry("work").final_output == {"save": 1}


def test_events_have_the_documented_fields(register: Register, carry: Carry, calls: Calls) -> None:
    flaky = does(calls, "b", ValueError("no"), 2, retries=2, retry_delay=0.01, description="Try")
    broken = does(calls, "c", ValueError("never"))
    register(Pipeline([does(calls, "a", 1), flaky, broken]))
    run = carry("work")
    retry_agent_run(run)
    run = finish(run)
    place = {"step_name": "a", "step_index": 0, "total_steps": 3}
    assert payloads(run, "step.started")[0] == {
        **place,
        "attempt": 1,
        "max_attempts": 1,
        "description": None,
    }
    done = payloads(run, "step.completed")[0]
    assert done.pop("duration_seconds") >= 0
    assert done == {**place, "result": 1}
    assert payloads(run, "step.skipped")[0] == {**place, "reason": "already_completed"}
    place = {"step_name": "b", "step_index": 1, "total_steps": 3}
    assert payloads(run, "step.retrying") == [
        {
            **place,
            "attempt": 2,
            "max_attempts": 3,
            "error": "Something went wrong. Retry, or contact support.",
            "code": "internal",
            "retry_delay": 0.01,
        }
    ]
    assert payloads(run, "step.started")[2] == {
        **place,
        "attempt": 2,
        "max_attempts": 3,
        "description": "Try",
    }
    assert payloads(run, "progress.update")[1] == {
        **place,
        "progress_percent": 67,
        "description": "Try",
    }
    assert payloads(run, "step.failed")[0] == {
        "step_name": "c",
        "step_index": 2,
        "total_steps": 3,
        "error": "Something went wrong. Retry, or contact support.",
        "code": "internal",
        "attempts": 1,
    }
    for event in run.events.all():
        assert set(event.payload) == set(EVENT_KINDS[EventType(event.event_type)].fields)


def test_the_description_of_a_step_is_shown_as_the_activity_of_the_run(
    register: Register, carry: Carry
) -> None:
    shown = []

    def look(ctx: RunContext, state: dict[str, Any]) -> None:
        shown.append(AgentRun.objects.get(pk=ctx.run_id).activity)

    register(Pipeline([Step("look", look, description="Looks around"), Step("again", look)]))
    assert carry("work").activity == ""
    assert shown == ["Looks around", "again"]


# What commits together


def test_result_state_and_events_of_a_step_are_written_together_or_not_at_all(
    register: Register, carry: Carry, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = journal_entries.save_entries

    def fail_once(entries: Sequence[Entry]) -> None:
        save(entries)
        if entries[0].row.name == "b" and calls.count("b") == 1:
            raise Error("The disk is full.")

    monkeypatch.setattr(journal_entries, "save_entries", fail_once)
    register(Pipeline([does(calls, "a"), does(calls, "b")]))
    run = carry("work")
    assert run.status == "failed"
    assert [row.name for row in run.checkpoints.all()] == ["a"]
    assert told(run, "completed") == [("completed", "a")]
    assert percents(run) == [50]
    retry_agent_run(run)
    assert finish(run).status == "completed"
    assert ExecutionState.for_run(run).custom_state == {"seen": ["a", "b"]}


def test_a_receiver_of_events_that_raises_fails_no_step(
    register: Register,
    user: User,
    calls: Calls,
    django_capture_on_commit_callbacks: Any,
) -> None:
    def break_down(**kwargs: Any) -> None:
        raise ValueError("The receiver is broken.")

    register(Pipeline([does(calls, "a")]))
    signals.agent_run_event.connect(break_down)
    try:
        with django_capture_on_commit_callbacks(execute=True):
            run = submit_agent_run(owner=user, input_payload="Go.", agent_key="work")
    finally:
        signals.agent_run_event.disconnect(break_down)
    run.refresh_from_db()
    assert run.status == "completed"


def test_steps_are_recorded_with_events_disabled(
    register: Register, carry: Carry, calls: Calls, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_ENABLE_EVENTS = False
    register(Pipeline([does(calls, "a", ValueError("no"), 1, retries=1), does(calls, "b")]))
    run = carry("work")
    assert run.status == "completed"
    assert ExecutionState.for_run(run).completed_steps == ["a", "b"]
    assert not run.events.exclude(event_type__startswith="run.").exists()


@pytest.mark.parametrize(
    "value", [object(), {1, 2}, float("nan"), b"raw", {"at": [{"deep": object()}]}, {1: "one"}]
)
def test_a_result_that_is_not_json_fails_the_step_and_saves_nothing(
    register: Register, carry: Carry, calls: Calls, value: Any
) -> None:
    register(Pipeline([does(calls, "a", value, retries=3)]))
    run = carry("work")
    assert run.status == "failed"
    assert calls == ["a"]
    assert payloads(run, "step.failed")[0]["code"] == "not_serializable"
    assert "result of 'a'" in run.error_detail
    assert payloads(run, "step.failed")[0]["attempts"] == 1
    assert not run.checkpoints.exists()


def test_a_state_that_is_not_json_fails_the_step_that_made_it(
    register: Register, carry: Carry
) -> None:
    async def spoil(ctx: RunContext, state: dict[str, Any]) -> str:
        state["lock"] = object()
        return "fine"

    register(Pipeline([Step("spoil", spoil, retries=2)]))
    run = carry("work")
    assert payloads(run, "step.failed")[0]["code"] == "not_serializable"
    assert "state after 'spoil'.lock" in run.error_detail
    assert not run.checkpoints.exists()


# Failures and retries


def test_changes_of_the_state_by_a_failed_try_are_discarded(
    register: Register, carry: Carry, calls: Calls
) -> None:
    begun_with = []

    async def flaky(ctx: RunContext, state: dict[str, Any]) -> str:
        begun_with.append([*state["seen"]])
        state["seen"].append("dirty")
        state["extra"] = len(begun_with)
        if len(begun_with) < 3:
            raise ValueError("Not yet.")
        return "ok"

    register(Pipeline([does(calls, "a"), Step("b", flaky, retries=2, retry_delay=0)]))
    run = carry("work")
    assert begun_with == [["a"], ["a"], ["a"]]
    assert ExecutionState.for_run(run).custom_state == {"seen": ["a", "dirty"], "extra": 3}


def test_a_step_that_fails_in_all_its_attempts_fails_the_run(
    register: Register, carry: Carry, calls: Calls
) -> None:
    register(Pipeline([does(calls, "a", ValueError("broken"), retries=2), does(calls, "b")]))
    run = carry("work")
    assert (run.status, run.error_code) == ("failed", "step_failed")
    assert calls == ["a", "a", "a"]
    assert "Step 'a' failed after 3 attempt(s)." in run.error_detail
    assert "ValueError: broken" in run.error_detail
    assert payloads(run, "step.failed")[0]["attempts"] == 3
    assert run.attempt == 1


def test_a_transient_error_is_retried_by_the_step_and_not_by_the_run(
    register: Register, carry: Carry, calls: Calls
) -> None:
    register(Pipeline([does(calls, "a", AWAY, "here", retries=1), does(calls, "b", AWAY)]))
    run = carry("work")
    assert (run.status, run.attempt) == ("failed", 1)
    assert calls == ["a", "a", "b"]


def test_the_retry_delay_doubles(register: Register, carry: Carry, calls: Calls) -> None:
    broken = does(calls, "a", ValueError("no"), retries=3, retry_delay=0.02)
    register(Pipeline([broken]))
    began = time.monotonic()
    run = carry("work")
    assert time.monotonic() - began >= 0.14
    delays = [payload["retry_delay"] for payload in payloads(run, "step.retrying")]
    assert delays == [0.02, 0.04, 0.08]


def test_a_step_over_its_timeout_is_retried_and_then_fails(
    register: Register, carry: Carry
) -> None:
    ended = []

    async def slow(ctx: RunContext, state: dict[str, Any]) -> None:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.02)
            ended.append(ctx.run_id)

    register(Pipeline([Step("slow", slow, retries=1, retry_delay=0, timeout=0.05)]))
    run = carry("work")
    assert run.status == "failed"
    assert len(ended) == 2, "What was given up had not ended when the next attempt began."
    assert payloads(run, "step.retrying")[0]["code"] == "timed_out"
    assert (
        "Step 'slow' took longer than its timeout of 0.05 s" in (payloads(run, "error")[0]["error"])
    )
    assert payloads(run, "step.failed")[0]["attempts"] == 2
    assert "StepTimeoutError" in run.error_detail


def test_a_synchronous_step_over_its_timeout_is_not_recorded(
    register: Register, carry: Carry
) -> None:
    def slow(ctx: RunContext, state: dict[str, Any]) -> str:
        time.sleep(0.2)
        return "late"

    register(Pipeline([Step("slow", slow, timeout=0.05)]))
    run = carry("work")
    assert "StepTimeoutError" in run.error_detail
    assert not run.checkpoints.exists()


def test_a_timeout_error_of_the_step_itself_is_an_ordinary_failure(
    register: Register, carry: Carry, calls: Calls
) -> None:
    register(Pipeline([does(calls, "a", TimeoutError("theirs"), 1, retries=1, timeout=5)]))
    run = carry("work")
    assert run.status == "completed"
    assert payloads(run, "step.retrying")[0]["code"] != "timed_out"
    assert payloads(run, "error") == [{"error": "TimeoutError: theirs", "type": "TimeoutError"}]


def test_a_step_whose_own_work_is_cancelled_fails_like_any_other(
    register: Register, carry: Carry, calls: Calls
) -> None:
    register(Pipeline([does(calls, "a", asyncio.CancelledError(), 1, retries=1)]))
    run = carry("work")
    assert run.status == "completed"
    assert "own work was cancelled" in payloads(run, "error")[0]["error"]


def test_users_see_the_text_of_a_user_error_only(
    register: Register, carry: Carry, calls: Calls
) -> None:
    secret, theirs = RuntimeError("password=hunter2"), UserError("Row 7 has no price.")
    register(Pipeline([does(calls, "a", secret, theirs, secret, retries=2, retry_delay=0)]))
    run = carry("work")
    told = [payload["error"] for payload in payloads(run, "step.retrying")]
    assert told == ["Something went wrong. Retry, or contact support.", "Row 7 has no price."]
    public = run.events.filter(visibility="user")
    assert "hunter2" not in str(list(public.values_list("payload", flat=True)))
    assert "hunter2" in payloads(run, "error")[0]["error"]
    assert "hunter2" in run.error_detail


def test_a_timeout_of_the_run_is_not_a_retry_of_the_step(
    register: Register, carry: Carry, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_RUN_TIMEOUT_SECONDS = 0.3

    async def stubborn(ctx: RunContext, state: dict[str, Any]) -> None:
        try:
            await asyncio.sleep(30)
        except asyncio.CancelledError:
            raise ValueError("I turn everything into my own errors.") from None

    register(Pipeline([Step("stubborn", stubborn, retries=5, retry_delay=0)]))
    run = carry("work")
    assert run.status == "timed_out"
    assert told(run) == [("started", "stubborn")]


def test_a_timeout_of_the_run_ends_the_wait_before_a_retry(
    register: Register, carry: Carry, calls: Calls, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_RUN_TIMEOUT_SECONDS = 0.3
    register(Pipeline([does(calls, "a", ValueError("no"), retries=5, retry_delay=30)]))
    run = carry("work")
    assert run.status == "timed_out"
    assert calls == ["a"]


def test_errors_name_the_step_and_the_number_of_tries() -> None:
    late = StepTimeoutError("slow", 2, 1.5)
    assert isinstance(late, StepExecutionError)
    assert isinstance(late, AgenticError)
    assert (late.step, late.attempts) == ("slow", 2)
    assert str(late) == "Step 'slow' took longer than its timeout of 1.5 s, in attempt 2."
    failed = StepExecutionError("a", 3)
    assert (failed.step, failed.attempts) == ("a", 3)


# Cancelling


def test_a_step_that_raises_step_cancelled_ends_the_run_cancelled_without_retry(
    register: Register, carry: Carry, calls: Calls
) -> None:
    register(Pipeline([does(calls, "a", StepCancelledError(), retries=3), does(calls, "b")]))
    run = carry("work")
    assert run.status == "cancelled"
    assert calls == ["a"]
    assert told(run) == [("started", "a")]
    assert payloads(run, "run.cancelled") == [{"by": "", "by_owner": False}]


def test_a_function_that_raises_step_cancelled_ends_the_run_cancelled(
    register: Register, carry: Carry
) -> None:
    async def give_up(ctx: RunContext) -> None:
        raise StepCancelledError

    register(give_up)
    assert carry("work").status == "cancelled"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("where", ["step", "sleep", "parallel", "synchronous", "last"])
def test_a_cancellation_is_honoured_wherever_the_run_is(
    register: Register,
    carry: Carry,
    calls: Calls,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.05)

    def stop(ctx: RunContext) -> None:
        cancel_agent_run(AgentRun.objects.get(pk=ctx.run_id))

    async def stop_and_wait(ctx: RunContext, state: dict[str, Any]) -> None:
        calls.append("stop")
        await ctx_call(stop, ctx)
        await asyncio.sleep(30)

    def stop_synchronously(ctx: RunContext, state: dict[str, Any]) -> str:
        calls.append("stop")
        stop(ctx)
        return "late"

    async def stop_later(ctx: RunContext, state: dict[str, Any]) -> None:
        calls.append("stop")
        asyncio.get_running_loop().call_later(
            0.1, lambda: asyncio.ensure_future(ctx_call(stop, ctx))
        )
        raise ValueError("no")

    steps: dict[str, list[Any]] = {
        "step": [Step("stop", stop_and_wait, retries=3), does(calls, "after")],
        "sleep": [Step("stop", stop_later, retries=3, retry_delay=30), does(calls, "after")],
        "parallel": [Parallel(Step("stop", stop_and_wait), does(calls, "beside"))],
        "synchronous": [Step("stop", stop_synchronously, retries=3), does(calls, "after")],
        "last": [Step("stop", stop_synchronously)],
    }
    register(Pipeline(steps[where]))
    began = time.monotonic()
    run = carry("work")
    assert run.status == "cancelled"
    assert time.monotonic() - began < 5
    assert "after" not in calls
    assert calls.count("stop") == 1
    assert ("completed", "stop") not in told(run)
    assert not run.checkpoints.filter(name="stop").exists()


async def ctx_call(fn: Callable[..., Any], *args: Any) -> Any:
    """Do synchronous work on the run's thread."""
    return await asyncio.to_thread(fn, *args)


# Resuming


@pytest.mark.not_replayed
def test_a_resumed_run_executes_no_recorded_step(resumed: Carry, calls: Calls) -> None:
    pipeline = Pipeline([does(calls, "a"), does(calls, "b", ValueError("no"), 2), does(calls, "c")])
    run = resumed(pipeline)
    assert run.final_output == {"a": "a is done", "b": 2, "c": "c is done"}
    assert calls == ["a", "b", "b", "c"]
    assert told(run, "skipped", "completed") == [
        ("completed", "a"),
        ("skipped", "a"),
        ("completed", "b"),
        ("completed", "c"),
    ]
    assert ExecutionState.for_run(run).custom_state == {"seen": ["a", "b", "c"]}


def test_a_resumed_run_starts_with_the_state_after_the_recorded_steps(resumed: Carry) -> None:
    seen = []

    async def one(ctx: RunContext, state: dict[str, Any]) -> None:
        state |= {"cursor": 10, "token": "t"}
        del state["start"]

    async def two(ctx: RunContext, state: dict[str, Any]) -> None:
        seen.append(dict(state))
        if len(seen) == 1:
            raise ValueError("no")
        del state["token"]

    run = resumed(Pipeline([Step("one", one), Step("two", two)]), context={"start": 1})
    assert seen == [{"cursor": 10, "token": "t"}] * 2
    assert ExecutionState.for_run(run).custom_state == {"cursor": 10}


@pytest.mark.not_replayed
def test_starting_over_executes_all_steps(register: Register, carry: Carry, calls: Calls) -> None:
    register(Pipeline([does(calls, "a"), does(calls, "b", ValueError("no"), 2)]))
    run = carry("work")
    retry_agent_run(run, start_again=True)
    assert finish(run).status == "completed"
    assert calls == ["a", "b", "a", "b"]
    assert told(run, "skipped") == []


@pytest.mark.not_replayed
def test_a_step_without_checkpoint_is_executed_again_on_resume(
    resumed: Carry, calls: Calls
) -> None:
    steps = [
        does(calls, "log_in", checkpoint=False),
        does(calls, "fetch"),
        does(calls, "again", checkpoint=False),
        does(calls, "save", ValueError("no"), 1),
    ]
    run = resumed(Pipeline(steps))
    assert calls == ["log_in", "fetch", "again", "save", "log_in", "again", "save"]
    assert [row.name for row in run.checkpoints.order_by("id")] == ["fetch", "save"]
    assert list(run.final_output) == ["log_in", "fetch", "again", "save"]
    assert ExecutionState.for_run(run).completed_steps == ["fetch", "save"]


@pytest.mark.not_replayed
@pytest.mark.parametrize("checkpoint", [True, False])
@pytest.mark.parametrize("failing", range(1, 5))
def test_progress_reaches_100_and_never_goes_back(
    resumed: Carry, calls: Calls, checkpoint: bool, failing: int
) -> None:
    steps: list[Any] = [
        does(calls, "a", checkpoint=checkpoint),
        does(calls, "b"),
        Parallel(does(calls, "c", checkpoint=checkpoint), does(calls, "d")),
        does(calls, "e", checkpoint=checkpoint),
    ]
    flaky = does(calls, "flaky", *[ValueError("no")] * 3, "at last", retries=1)
    steps.insert(failing, flaky)
    run = resumed(Pipeline(steps))
    shown = percents(run)
    assert shown == sorted(shown)
    assert shown[-1] == 100
    assert run.progress is not None
    assert run.progress["progress_percent"] == 100


def test_a_run_that_crashed_after_its_last_step_still_shows_100(
    register: Register, carry: Carry, calls: Calls, monkeypatch: pytest.MonkeyPatch
) -> None:
    change, left = fenced_writes.write_changes, [Error("The database is away.")]

    def fail_once(changes: Sequence[fenced_writes.RunChange], **kwargs: Any) -> None:
        if changes[0].verb == "complete" and left:
            raise left.pop()
        change(changes, **kwargs)

    monkeypatch.setattr(fenced_writes, "write_changes", fail_once)
    register(Pipeline([does(calls, "a"), does(calls, "b", checkpoint=False)]))
    run = AgentRun.objects.create(owner=User.objects.get(), agent_key="work", input_payload="")
    with pytest.raises(Error):
        attempt(run)
    AgentRun.objects.filter(pk=run.pk).update(status="pending", lease_ends_at=None)
    run = finish(run)
    assert run.status == "completed"
    assert calls == ["a", "b", "b"]
    assert percents(run) == [50, 100, 100]


# Changed definitions


def test_names_that_are_used_twice_are_refused_at_registration(calls: Calls) -> None:
    with pytest.raises(BadSetting, match="Two steps are called 'a'"):
        Pipeline([does(calls, "a"), Parallel(does(calls, "b"), does(calls, "a"))])


def test_names_that_are_too_long_are_refused_at_registration(calls: Calls) -> None:
    Pipeline([does(calls, "a" * 255)])
    with pytest.raises(BadSetting, match="1 to 255 characters"):
        Pipeline([does(calls, "a" * 256)])


def test_steps_with_long_and_odd_names_are_resumed(resumed: Carry, calls: Calls) -> None:
    names = ["a" * 255, "a" * 254 + "b", "with/slash", "with: colon", "Schrittübung 1 %_"]
    steps = [does(calls, name) for name in names]
    run = resumed(Pipeline([*steps, does(calls, "last", ValueError("no"), 1)]))
    assert run.status == "completed"
    assert calls == [*names, "last", "last"]


def refused(run: AgentRun, text: str) -> None:
    """Check that a run was not resumed, and says why."""
    assert (run.status, run.error_code) == ("failed", "pipeline_changed"), run.error_detail
    assert "steps were changed after this run started" in run.error
    assert text in run.error_detail


def test_another_version_of_the_steps_is_refused_at_resume(resumed: Carry, calls: Calls) -> None:
    steps = [does(calls, "a"), does(calls, "b", ValueError("no"), 1)]
    run = resumed(Pipeline(steps, version="1"), Pipeline(steps, version="2"))
    refused(run, "was started with version '1' of the steps, and they are version '2' now")
    assert calls == ["a", "b"]
    retry_agent_run(run, start_again=True)
    assert finish(run).status == "completed"


@pytest.mark.parametrize(
    ("names", "text"),
    [
        (["A", "b", "c", "d"], "Step 'a' is done and is not among the steps any more"),
        (["b", "c", "d"], "Step 'a' is done and is not among the steps any more"),
        (["b", "a", "c", "d"], "their order is another"),
        (["a", "c", "b", "d"], "other steps come before them"),
        (["new", "a", "b", "c", "d"], "other steps come before them"),
        (["a", "new", "b", "c", "d"], "other steps come before them"),
    ],
    ids=["renamed", "removed", "reordered", "moved", "added in front", "added between"],
)
def test_a_change_of_recorded_steps_is_refused_at_resume(
    resumed: Carry, calls: Calls, names: list[str], text: str
) -> None:
    before = [does(calls, "a"), does(calls, "b"), does(calls, "c", ValueError("no"))]
    run = resumed(Pipeline(before), Pipeline([does(calls, name) for name in names]))
    refused(run, text)
    assert calls == ["a", "b", "c"]


@pytest.mark.parametrize(
    "names",
    [
        ["a", "b", "C"],
        ["a", "b", "d", "c"],
        ["a", "b", "new", "c"],
        ["a", "b", "c", "new"],
        ["a", "b"],
    ],
    ids=["renamed", "reordered", "added before", "added behind", "removed"],
)
def test_a_change_of_remaining_steps_applies_at_resume(
    resumed: Carry, calls: Calls, names: list[str]
) -> None:
    before = [does(calls, "a"), does(calls, "b"), does(calls, "c", ValueError("no"))]
    run = resumed(Pipeline(before), Pipeline([does(calls, name) for name in names]))
    assert run.status == "completed"
    assert list(run.final_output) == names
    assert calls == ["a", "b", "c", *names[2:]]


def test_steps_without_checkpoint_may_be_added_anywhere(resumed: Carry, calls: Calls) -> None:
    before = [does(calls, "a"), does(calls, "b", ValueError("no"))]
    after = [does(calls, "log_in", checkpoint=False), does(calls, "a"), does(calls, "b")]
    assert resumed(Pipeline(before), Pipeline(after)).status == "completed"
    assert calls == ["a", "b", "log_in", "b"]


# Parallel groups


def test_parallel_steps_are_executed_concurrently(register: Register, carry: Carry) -> None:
    def meeting(name: str) -> Step:
        async def fn(ctx: RunContext, state: dict[str, Any]) -> str:
            async with asyncio.timeout(5):
                await together.wait()
            return name

        return Step(name, fn)

    together = asyncio.Barrier(3)
    register(Pipeline([Parallel(*map(meeting, "abc"))]))
    assert carry("work").final_output == {"a": "a", "b": "b", "c": "c"}


def test_changes_of_parallel_steps_are_merged_in_the_order_of_the_steps(
    register: Register, carry: Carry
) -> None:
    def changing(name: str, seconds: float, drop: str = "") -> Step:
        async def fn(ctx: RunContext, state: dict[str, Any]) -> list[str]:
            await asyncio.sleep(seconds)
            seen = sorted(state)
            state[name] = True
            state["last"] = name
            state.pop(drop, None)
            return seen

        return Step(name, fn)

    async def look(ctx: RunContext, state: dict[str, Any]) -> dict[str, Any]:
        return dict(state)

    group = Parallel(changing("a", 0.05), changing("b", 0.0, "gone"), changing("c", 0.02))
    register(Pipeline([group, Step("look", look)]))
    run = carry("work", context={"kept": 1, "gone": 2})
    merged = {"kept": 1, "a": True, "b": True, "c": True, "last": "c"}
    assert run.final_output["a"] == ["gone", "kept"]
    assert run.final_output["look"] == merged
    assert ExecutionState.for_run(run).custom_state == merged


def test_the_state_after_a_last_group_is_read_from_the_journal(
    register: Register, carry: Carry, calls: Calls
) -> None:
    async def add(ctx: RunContext, state: dict[str, Any]) -> None:
        state["added"] = True

    register(Pipeline([does(calls, "a"), Parallel(does(calls, "b"), Step("add", add))]))
    state = ExecutionState.for_run(carry("work"))
    assert state.custom_state == {"seen": ["a", "b"], "added": True}


def test_the_other_steps_of_a_failed_group_end_before_the_run(
    register: Register, carry: Carry, calls: Calls
) -> None:
    async def slow(ctx: RunContext, state: dict[str, Any]) -> None:
        try:
            await asyncio.sleep(30)
        finally:
            await asyncio.sleep(0.05)
            calls.append("slow has ended")

    register(Pipeline([Parallel(Step("slow", slow), does(calls, "broken", ValueError("no")))]))
    run = carry("work")
    assert run.status == "failed"
    assert calls == ["broken", "slow has ended"]


@pytest.mark.parametrize("broken", ["a", "b", "c"])
def test_only_the_missing_steps_of_a_group_are_executed_on_resume(
    resumed: Carry, calls: Calls, broken: str
) -> None:
    async def fn(ctx: RunContext, state: dict[str, Any]) -> str:
        await asyncio.sleep(0.05)
        if ctx.run.attempt == 1:
            raise ValueError("no")
        calls.append(broken)
        state[broken] = True
        return broken

    def member(name: str) -> Step:
        return Step(name, fn) if name == broken else does(calls, name)

    run = resumed(Pipeline([does(calls, "first"), Parallel(*map(member, "abc")), does(calls, "z")]))
    assert run.status == "completed", run.error_detail
    assert sorted(calls) == ["a", "b", "c", "first", "z"]
    assert list(run.final_output) == ["first", "a", "b", "c", "z"]
    assert ExecutionState.for_run(run).custom_state[broken] is True


def test_a_parallel_step_has_retries_of_its_own(
    register: Register, carry: Carry, calls: Calls
) -> None:
    flaky = does(calls, "flaky", ValueError("no"), "ok", retries=1)
    register(Pipeline([Parallel(flaky, does(calls, "steady"))]))
    assert carry("work").final_output == {"flaky": "ok", "steady": "steady is done"}
    assert sorted(calls) == ["flaky", "flaky", "steady"]


# Sub-steps


def test_sub_steps_are_recorded_once_each(resumed: Carry, calls: Calls) -> None:
    async def embed(n: int) -> int:
        calls.append(f"embed {n}")
        if n == 3 and calls.count("embed 3") == 1:
            raise ValueError("no")
        return n * n

    async def embed_all(ctx: RunContext, state: dict[str, Any]) -> int:
        return sum([await ctx.step(f"embed:{n}", embed, n) for n in range(5)])

    run = resumed(Pipeline([Step("embed", embed_all)]))
    assert run.final_output == {"embed": 30}
    assert calls == [f"embed {n}" for n in (0, 1, 2, 3, 3, 4)]
    assert run.checkpoints.filter(name__startswith="embed:").count() == 5


def test_sub_steps_are_kept_over_a_retry_of_their_step(
    register: Register, carry: Carry, calls: Calls
) -> None:
    async def count(ctx: RunContext, state: dict[str, Any]) -> None:
        for n in range(3):
            await ctx.step(f"n:{n}", lambda n=n: calls.append(str(n)))
        if calls.count("tried") < 2:
            calls.append("tried")
            raise ValueError("no")

    register(Pipeline([Step("count", count, retries=2, retry_delay=0)]))
    assert carry("work").status == "completed"
    assert calls == ["0", "1", "2", "tried", "tried"]


def test_sub_steps_of_two_steps_may_have_the_same_names(register: Register, carry: Carry) -> None:
    def counting(by: int) -> Any:
        async def fn(ctx: RunContext, state: dict[str, Any]) -> list[Any]:
            return [await ctx.step(f"row:{n}", lambda n=n: n * by) for n in range(3)]

        return fn

    register(Pipeline([Step("once", counting(1)), Step("twice", counting(2))]))
    assert carry("work").final_output == {"once": [0, 1, 2], "twice": [0, 2, 4]}


def test_sub_steps_may_be_gathered(register: Register, carry: Carry) -> None:
    async def double(n: int) -> int:
        await asyncio.sleep(0.01)
        return 2 * n

    async def fn(ctx: RunContext, state: dict[str, Any]) -> list[int]:
        return list(await asyncio.gather(*(ctx.step(f"n:{n}", double, n) for n in range(20))))

    register(Pipeline([Step("all", fn)]))
    assert carry("work").final_output == {"all": [2 * n for n in range(20)]}


# StepExecutor


def within(*args: Any, **kwargs: Any) -> Any:
    """Return a function runtime that runs steps with an executor of these arguments."""
    executors = args

    async def run(ctx: RunContext) -> Any:
        results = {}
        for key, steps in executors:
            results[key] = await StepExecutor(ctx, checkpoint_key=key).run(steps, **kwargs)
        return results

    return run


@pytest.mark.not_replayed
def test_executors_with_different_keys_are_independent(
    register: Register, carry: Carry, calls: Calls
) -> None:
    def asking(text: str) -> Step:
        async def fn(ctx: RunContext, state: dict[str, Any]) -> str:
            state["text"] = text
            return str(await ctx.step("ask", lambda: text))

        return Step("ask", fn)

    broken = does(calls, "broken", ValueError("no"), 1)
    register(within(("one", [asking("first")]), ("two", [asking("second"), broken])))
    run = carry("work")
    retry_agent_run(run)
    run = finish(run)
    assert run.final_output == {"one": {"ask": "first"}, "two": {"ask": "second", "broken": 1}}
    assert ExecutionState.for_run(run, "one").step_results == {"ask": "first"}
    assert ExecutionState.for_run(run, "two").completed_steps == ["ask", "broken"]
    assert ExecutionState.for_run(run).completed_steps == []
    assert percents(run) == [100, 50, 100]


def test_a_checkpoint_key_with_a_slash_is_refused(register: Register, carry: Carry) -> None:
    register(within(("one/two", [])))
    assert "must not have a slash" in carry("work").error_detail


def test_initial_state_is_copied(register: Register, carry: Carry, calls: Calls) -> None:
    initial: dict[str, Any] = {"seen": ["before"]}
    register(within(("key", [does(calls, "a")]), initial_state=initial))
    run = carry("work")
    assert initial == {"seen": ["before"]}
    assert ExecutionState.for_run(run, "key").custom_state == {"seen": ["before", "a"]}


@pytest.mark.not_replayed
def test_without_resume_all_steps_are_executed_again(
    register: Register, carry: Carry, calls: Calls
) -> None:
    async def ask(ctx: RunContext, state: dict[str, Any]) -> Any:
        return await ctx.step("sub", lambda: calls.append("sub") or len(calls))

    steps = [does(calls, "a"), Step("ask", ask), does(calls, "b", ValueError("no"), 1)]
    register(within(("key", steps), resume=False))
    run = carry("work")
    retry_agent_run(run)
    run = finish(run)
    assert run.status == "completed", run.error_detail
    assert calls == ["a", "sub", "b", "a", "sub", "b"]
    assert run.final_output["key"]["ask"] == 5
    assert told(run, "skipped") == []
    assert ExecutionState.for_run(run, "key").completed_steps == ["a", "ask", "b"]


def test_a_crash_loop_without_resume_ends(
    register: Register, carry: Carry, calls: Calls, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_MAX_ATTEMPTS = 3

    async def crash(ctx: RunContext) -> None:
        await StepExecutor(ctx).run([does(calls, "a")], resume=False)
        raise AWAY

    register(crash)
    run = carry("work")
    assert (run.status, run.attempt) == ("failed", 3)


def test_names_that_are_used_twice_are_refused_by_an_executor_too(
    register: Register, carry: Carry, calls: Calls
) -> None:
    register(within(("key", [does(calls, "a"), does(calls, "a")])))
    run = carry("work")
    assert (run.status, run.error_code) == ("failed", "bad_setting")
    assert calls == []


# ExecutionState


def test_an_execution_state_has_the_done_steps_and_their_results(
    register: Register, carry: Carry, calls: Calls
) -> None:
    register(Pipeline([does(calls, "a", 1), does(calls, "b", None), does(calls, "c", AWAY)]))
    run = carry("work")
    state = ExecutionState.for_run(run)
    assert state.execution_id == str(run.pk)
    assert state.current_step_index == 2
    assert state.completed_steps == ["a", "b"]
    assert state.step_results == {"a": 1, "b": None}
    assert state.custom_state == {"seen": ["a", "b"]}
    assert state.started_at is not None
    assert ExecutionState.from_dict(state.to_dict()) == state
    retry_agent_run(run, start_again=True)
    assert ExecutionState.for_run(run) == ExecutionState(str(run.pk))


# Registration


def test_a_pipeline_is_registered_like_any_agent(
    settings: Any, user: User, monkeypatch: pytest.MonkeyPatch, no_queue: None
) -> None:
    monkeypatch.setattr(registry, "_registry", registry._Registry())
    settings.AGENTIC_DJANGO_AGENT_REGISTRY = "tests.steps.test_executor.registered"
    run = submit_agent_run(owner=user, input_payload="Hello", agent_key="pipeline")
    assert finish(run).final_output == {"only": "Hello"}


async def only(ctx: RunContext, state: dict[str, Any]) -> Any:
    return ctx.input_messages[0]["content"]


def registered() -> dict[str, Any]:
    """Return a registry; its pipeline has the name that a host is likely to choose."""
    return {"pipeline": Pipeline([Step("only", only)])}


def test_a_pipeline_in_a_conversation_stores_the_message_of_the_user(
    register: Register, carry: Carry, calls: Calls, user: User
) -> None:
    register(Pipeline([does(calls, "a")]))
    session = make_session(user)
    carry("work", given="Do it.", session=session)
    assert session.get_message_history() == [{"role": "user", "content": "Do it."}]


# What a host may get wrong


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"retries": -1}, "retries must be an integer of at least 0"),
        ({"retries": None}, "retries must be an integer of at least 0"),
        ({"retries": 1.5}, "retries must be an integer of at least 0"),
        ({"timeout": "5"}, "timeout must be a number of seconds"),
        ({"timeout": 0}, "timeout must be a number of seconds"),
        ({"timeout": float("inf")}, "timeout must be a number of seconds"),
        ({"retry_delay": -1}, "retry_delay must be a number of seconds"),
        ({"description": 5}, "description must be text"),
        ({"name": ""}, "1 to 255 characters"),
        ({"name": 5}, "1 to 255 characters"),
        ({"name": "a\0"}, "a character that databases refuse"),
        ({"name": "a\ud800"}, "a character that databases refuse"),
        ({"fn": "save"}, "fn must be a function"),
    ],
)
def test_a_step_with_an_invalid_value_is_refused(options: Any, text: str) -> None:
    with pytest.raises(BadSetting, match=text):
        Step(**{"name": "a", "fn": print, **options})


@pytest.mark.parametrize(
    "make",
    [lambda: Pipeline([1]), lambda: Pipeline([Parallel(Parallel())])],  # type: ignore[list-item,arg-type]
)
def test_a_pipeline_of_other_objects_than_steps_is_refused(make: Callable[[], Any]) -> None:
    with pytest.raises(BadSetting):
        make()


def test_a_description_may_be_translatable_and_have_odd_characters(
    register: Register, carry: Carry
) -> None:
    steps = [Step("a", ctx_none, description=gettext_lazy("yes")), Step("b", ctx_none)]
    register(Pipeline([*steps, Step("c", ctx_none, description="c\0\ud800")]))
    run = carry("work")
    assert run.status == "completed", run.error_detail
    told = [payload["description"] for payload in payloads(run, "step.started")]
    assert told == ["yes", None, "c\0\ud800"]


async def ctx_none(ctx: RunContext, state: dict[str, Any]) -> None:
    """Do nothing."""


def test_an_initial_state_that_is_not_json_is_refused_before_the_first_step(
    register: Register, carry: Carry, calls: Calls
) -> None:
    async def work(ctx: RunContext) -> Any:
        return await StepExecutor(ctx).run([does(calls, "a")], initial_state={"s": {1}})

    register(work)
    run = carry("work")
    assert (run.status, run.error_code, calls) == ("failed", "not_serializable", [])


def test_an_executor_within_a_step_needs_a_key_of_its_own(
    register: Register, carry: Carry, calls: Calls
) -> None:
    async def outer(ctx: RunContext, state: dict[str, Any]) -> Any:
        with pytest.raises(BadSetting, match="checkpoint_key of its own"):
            StepExecutor(ctx)
        return await StepExecutor(ctx, "inner").run([does(calls, "a")])

    register(Pipeline([Step("outer", outer)]))
    assert carry("work").final_output == {"outer": {"a": "a is done"}}


def test_progress_reaches_100_if_the_remaining_steps_were_removed(
    resumed: Carry, calls: Calls
) -> None:
    before = Pipeline([does(calls, "a"), does(calls, "b", ValueError("no"))])
    run = resumed(before, Pipeline([does(calls, "a")]))
    assert run.status == "completed"
    assert percents(run) == [50, 100]


@pytest.mark.parametrize("told", [{}, {"progress_percent": "half"}])
def test_a_host_may_write_progress_events_of_its_own(
    resumed: Carry, calls: Calls, told: dict[str, Any]
) -> None:
    async def tell(ctx: RunContext, state: dict[str, Any]) -> None:
        await ctx.emit("progress.update", {"step_name": "a", "description": "Nearly.", **told})

    run = resumed(Pipeline([Step("a", tell), does(calls, "b", ValueError("no"), "well")]))
    assert run.status == "completed"
    assert payloads(run, "progress.update")[-1]["progress_percent"] == 100


def test_the_state_after_a_group_is_restored_on_resume(register: Register, carry: Carry) -> None:
    async def change(ctx: RunContext, state: dict[str, Any]) -> None:
        state["k"] = 2
        del state["gone"]

    async def add(ctx: RunContext, state: dict[str, Any]) -> None:
        await asyncio.sleep(0.05)
        state["z"] = 1

    last: list[Any] = []

    async def fail(ctx: RunContext, state: dict[str, Any]) -> None:
        last.append(dict(state))
        raise ValueError

    register(Pipeline([Parallel(Step("a", add), Step("b", change)), Step("c", fail)]))
    run = carry("work", context={"k": 1, "gone": 1, "same": 1})
    state = ExecutionState.for_run(run)
    assert state.custom_state == last[0] == {"k": 2, "z": 1, "same": 1}
    assert state.current_step_index == 2


def test_the_index_counts_steps_that_are_not_recorded(
    register: Register, carry: Carry, calls: Calls
) -> None:
    steps = [does(calls, "log_in", checkpoint=False), does(calls, "fetch")]
    register(Pipeline([*steps, does(calls, "save", ValueError("no"))]))
    assert ExecutionState.for_run(carry("work")).current_step_index == 2


# Sub-steps


def test_gathered_sub_steps_are_kept_over_a_retry_of_their_step(
    register: Register, carry: Carry, calls: Calls
) -> None:
    async def part(n: int, ctx: RunContext) -> int:
        calls.append(f"{n}")
        if n == 1 and calls.count("1") == 1:
            raise ValueError("once")
        await asyncio.sleep(0.2)
        calls.append(f"{n} done")
        return n

    async def embed(ctx: RunContext, state: dict[str, Any]) -> list[int]:
        return await asyncio.gather(*[ctx.step(f"embed:{n}", part, n, ctx) for n in (1, 2, 3)])

    register(Pipeline([Step("embed", embed, retries=2, retry_delay=0.05)]))
    run = carry("work")
    assert run.final_output == {"embed": [1, 2, 3]}, run.error_detail
    assert sorted(call for call in calls if "done" in call) == ["1 done", "2 done", "3 done"]


@pytest.mark.parametrize("at_once", [True, False])
def test_a_name_that_two_sub_steps_share_is_refused(
    register: Register, carry: Carry, calls: Calls, at_once: bool
) -> None:
    async def save(ctx: RunContext, state: dict[str, Any]) -> Any:
        first = ctx.step("save", calls.append, "1")
        if at_once:
            return await asyncio.gather(first, ctx.step("save", calls.append, "2"))
        return [await first, await ctx.step("save", calls.append, "2")]

    register(Pipeline([Step("both", save)]))
    run = carry("work")
    assert run.status == "failed"
    assert "Two steps here are called 'save'" in run.error_detail
    assert "2" not in calls


@pytest.mark.parametrize(
    "names",
    [
        (("load", "eu:1"), ("load:eu", "1")),
        (("load", "a%3Ab"), ("load:a", "b")),
        (("load", "a/b"), ("load:a", "b")),
    ],
)
def test_names_with_colons_have_different_keys(
    register: Register, carry: Carry, names: Any
) -> None:
    def holding(inner: str) -> Callable[..., Any]:
        async def fn(ctx: RunContext, state: dict[str, Any]) -> Any:
            return await ctx.step(inner, lambda: inner)

        return fn

    register(Pipeline([Step(outer, holding(inner)) for outer, inner in names]))
    assert carry("work").final_output == dict(names)


def test_the_result_of_a_sub_step_is_a_copy(register: Register, carry: Carry) -> None:
    async def take(ctx: RunContext, state: dict[str, Any]) -> Any:
        items = await ctx.step("fetch", lambda: [1, 2, 3])
        if len(items) == 3 and not state.get("left"):
            left = list(items)
            items.pop()
            ctx.run.metadata["tries"] = ctx.run.metadata.get("tries", 0) + 1
            if ctx.run.metadata["tries"] == 1:
                raise ValueError
            return left
        return items

    register(Pipeline([Step("take", take, retries=1, retry_delay=0)]))
    assert carry("work").final_output == {"take": [1, 2, 3]}


@pytest.mark.parametrize("name", ["", "a\0", 42, "x" * 256])
def test_an_invalid_step_name_is_refused_before_the_call(
    register: Register, carry: Carry, calls: Calls, name: Any
) -> None:
    async def work(ctx: RunContext) -> Any:
        return await ctx.step(name, calls.append, "called")

    register(work)
    assert (carry("work").status, calls) == ("failed", [])


def test_a_sub_steps_function_may_take_any_argument(register: Register, carry: Carry) -> None:
    async def work(ctx: RunContext) -> Any:
        return await ctx.step("greet", lambda name, fn: f"{name} {fn}", name="Bob", fn=1)

    register(work)
    assert carry("work").final_output == "Bob 1"


# Started again


@pytest.mark.not_replayed
def test_progress_of_an_earlier_generation_is_not_shown(
    register: Register, carry: Carry, calls: Calls
) -> None:
    steps = [does(calls, "a"), does(calls, "b"), does(calls, "c", ValueError("no"), 1)]
    register(Pipeline(steps))
    run = carry("work")
    assert [stage["state"] for stage in run.stages] == ["completed", "completed", "failed"]
    retry_agent_run(run, start_again=True)
    again = AgentRun.objects.with_steps().get()
    assert (again.stages, again.progress, again.texts) == ([], None, [])
    run = finish(run)
    assert percents(run) == [33, 67, 33, 67, 100]
