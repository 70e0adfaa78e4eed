"""Inline runs: a host executes them in its own code, and no queue starts them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from agents import Agent
from agents.testing import ScriptedModel, assistant_message
from asgiref.sync import async_to_sync
from django.contrib.auth.models import Group, User
from django.db import OperationalError, connections
from django.db.models.functions import Now
from django.test import Client

from agentic_django.engine import claims, heartbeat, journal_entries, lifecycle, recovery
from agentic_django.engine.attempt import Attempt
from agentic_django.engine.journal_entries import Entry
from agentic_django.exceptions import AgentChanged, BadInput, Conflict, NotSerializable, RunWaiting
from agentic_django.models import AgentRun, AgentSession, ToolApproval
from agentic_django.runtime import RunContext, RunResult, ToolRegistry, inline
from agentic_django.services import (
    cancel_agent_run,
    enqueue_agent_run,
    retry_agent_run,
    submit_agent_run,
)
from agentic_django.signals import agent_session_created
from agentic_django.steps import Step, StepCancelledError, StepExecutionError, StepExecutor
from tests.support.agents import USAGE
from tests.support.openai_server import OpenAIServer, Reply
from tests.support.rows import make_run, make_session

pytestmark = pytest.mark.django_db

type Calls = list[str]


def performed(main: Callable[..., Coroutine[Any, Any, Any]], *args: Any, **kwargs: Any) -> Any:
    """Execute a host's asynchronous code from its synchronous code."""
    return async_to_sync(main)(*args, **kwargs)


def noting(calls: Calls, name: str, *errors: Exception) -> Step:
    """Return a step that records its calls in a list, and raises these errors first."""
    left = list(errors)

    async def fn(ctx: RunContext, state: dict[str, Any]) -> str:
        calls.append(name)
        if left:
            raise left.pop(0)
        return f"{name} is done"

    return Step(name, fn)


async def working(*steps: Step, result: Any = None, **options: Any) -> str:
    """Execute steps in an inline run, and return its id."""
    async with RunContext.open(**options) as ctx:
        results = await StepExecutor(ctx).run(list(steps))
        ctx.result = results if result is None else result
        return ctx.run_id


@pytest.fixture
def fast_heartbeat(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the heartbeat check often whether its attempts have lost their runs."""
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.05)


# A run from its beginning to its end


def test_an_inline_run_executes_within_a_test_case(user: User) -> None:
    calls: Calls = []

    def save(ctx: RunContext, state: dict[str, Any]) -> int:
        Group.objects.create(name=ctx.params["name"])
        return Group.objects.count()

    steps = [noting(calls, "fetch"), Step("save", save)]
    metadata = {"by": "test"}
    run_id = performed(working, *steps, user=user, params={"name": "a"}, metadata=metadata)
    run = AgentRun.objects.get(pk=run_id)
    assert (run.status, run.owner, run.attempt) == ("completed", user, 1)
    assert run.final_output == {"fetch": "fetch is done", "save": 1}
    assert (run.context, run.metadata) == ({"name": "a"}, {"by": "test"})
    assert run.session is None
    kinds = list(run.events.order_by("sequence").values_list("event_type", flat=True))
    step = ["step.started", "step.completed", "progress.update"]
    assert kinds == ["run.started", *step, *step, "run.completed"]
    assert run.started_at is not None
    assert run.finished_at is not None
    assert run.lease_ends_at is None
    assert run.active_seconds > 0


def test_an_inline_run_needs_no_owner() -> None:
    run = AgentRun.objects.get(pk=performed(working))
    assert (run.status, run.owner, run.final_output) == ("completed", None, {})


def test_messages_join_the_conversation(user: User) -> None:
    said = [{"role": "assistant", "content": "Half."}, {"role": "assistant", "content": "Whole."}]
    options = {"user": user, "conversation_id": "talk"}
    performed(working, result="Done.", input_messages="Do it.", **options)
    asked = [{"role": "user", "content": "Go on."}]
    performed(working, result=RunResult(7, said), input_messages=asked, **options)
    session = AgentSession.objects.get(owner=user, session_key="talk")
    texts = [message["content"] for message in session.get_message_history()]
    assert texts == ["Do it.", "Done.", "Go on.", "Half.", "Whole."]
    assert [run.final_output for run in session.runs.order_by("position")] == ["Done.", 7]


def test_an_agent_can_continue_the_conversation(
    user: User, django_capture_on_commit_callbacks: Any
) -> None:
    performed(working, result="Done.", input_messages="Do it.", user=user, conversation_id="talk")
    with django_capture_on_commit_callbacks(execute=True):
        run = submit_agent_run(owner=user, input_payload="Thanks.", session_key="talk")
    run.refresh_from_db()
    assert (run.status, run.agent_key) == ("completed", "default")


def test_models_and_agents_within_an_inline_run_are_recorded_and_billed(user: User) -> None:
    model = ScriptedModel([[assistant_message(t)] for t in ("One.", "Two.")], default_usage=USAGE)

    async def main(run_id: str | None = None) -> str:
        async with RunContext.open(run_id, user=user) as ctx:
            asked = [{"role": "user", "content": "?"}]
            one = (await ctx.generate(asked, model=model)).message.content
            two = await ctx.run_agent(Agent(name="sdk", model=model), "?")
            if ctx.run.attempt == 1:
                raise ValueError(ctx.run_id)
            ctx.result = [one, two]
        return ctx.run_id

    with pytest.raises(ValueError, match="-") as raised:
        performed(main)
    run = AgentRun.objects.get(pk=performed(main, str(raised.value)))
    assert run.final_output == ["One.", "Two."]
    assert run.usage["total_tokens"] == 30
    assert len(model.calls) == 2


def test_a_synchronous_tool_uses_the_orm_within_a_test_case() -> None:
    def add_group(name: str) -> int:
        """Create a group."""
        Group.objects.create(name=name)
        return Group.objects.count()

    async def main() -> Any:
        tools = ToolRegistry()
        tools.register(add_group)
        async with RunContext.open():
            return await tools.execute("add_group", {"name": "a"})

    assert performed(main) == 1


def test_a_signal_is_sent_for_a_session_that_an_inline_run_creates(
    user: User, django_capture_on_commit_callbacks: Any
) -> None:
    heard = []

    def hear(session: AgentSession, **kwargs: Any) -> None:
        heard.append(session.session_key)

    agent_session_created.connect(hear)
    try:
        with django_capture_on_commit_callbacks(execute=True):
            for _ in range(2):
                performed(working, user=user, conversation_id="talk")
    finally:
        agent_session_created.disconnect(hear)
    assert heard == ["talk"]


@pytest.mark.django_db(transaction=True)
def test_inline_runs_may_execute_concurrently(user: User) -> None:
    async def main() -> list[str]:
        return list(await asyncio.gather(*(one(n) for n in range(5))))

    async def one(n: int) -> str:
        async with RunContext.open(user=user) as ctx:
            for step in range(3):
                await ctx.step(f"{step}", lambda step=step: [n, step])
            ctx.result = n
            return ctx.run_id

    found = [AgentRun.objects.get(pk=run_id) for run_id in performed(main)]
    assert [run.final_output for run in found] == list(range(5))
    for run in found:
        assert [row.result[0] for row in run.checkpoints.all()] == [run.final_output] * 3


@pytest.mark.django_db(transaction=True)
def test_loops_that_follow_each_other_find_the_provider(
    openai_server: OpenAIServer, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_DEFAULT_MODEL = "gpt-5-mini"
    openai_server.answer_with(lambda body: Reply("Fine."))

    async def main() -> str:
        async with RunContext.open() as ctx:
            answer = await ctx.generate([{"role": "user", "content": "?"}])
            ctx.result = await ctx.run_agent(Agent(name="sdk", model="gpt-5-mini"), "?")
            return str(answer.message.content)

    assert [performed(main) for _ in range(4)] == ["Fine."] * 4


# Failing and resuming


@pytest.mark.django_db(transaction=True)
def test_a_failed_inline_run_is_resumed_by_its_id(user: User) -> None:
    calls: Calls = []
    steps = [noting(calls, "one"), noting(calls, "two", ValueError("no"))]
    with pytest.raises(StepExecutionError):
        performed(working, *steps, user=user, conversation_id="talk", input_messages="Go.")
    run = AgentRun.objects.get()
    assert (run.status, run.error_code) == ("failed", "step_failed")
    assert "ValueError: no" in run.error_detail
    assert run.session is not None
    assert run.session.get_message_history() == []
    assert performed(working, *steps, result="Done.", run_id=run.pk) == str(run.pk)
    run.refresh_from_db()
    assert (run.status, run.attempt, run.error) == ("completed", 2, "")
    assert calls == ["one", "two", "two"]
    texts = [message["content"] for message in run.session.get_message_history()]
    assert texts == ["Go.", "Done."]


def test_an_unknown_id_becomes_the_id_of_a_new_run() -> None:
    run_id = uuid4()
    assert performed(working, run_id=str(run_id)) == str(run_id)
    assert AgentRun.objects.get().pk == run_id


@pytest.mark.parametrize(
    ("error", "code"),
    [(ValueError("no"), "internal"), (SystemExit(1), "lost"), (NotSerializable("no"), None)],
)
def test_an_error_of_the_block_fails_the_run_and_is_raised(
    error: BaseException, code: str | None
) -> None:
    async def main() -> None:
        async with RunContext.open():
            raise error

    with pytest.raises(type(error)):
        performed(main)
    run = AgentRun.objects.get()
    assert (run.status, run.error_code) == ("failed", code or "not_serializable")


def test_a_result_that_is_not_json_fails_the_run() -> None:
    with pytest.raises(NotSerializable):
        performed(working, result=object())
    assert AgentRun.objects.get().error_code == "not_serializable"


def test_a_block_that_raises_step_cancelled_ends_the_run_cancelled() -> None:
    async def main() -> None:
        async with RunContext.open():
            raise StepCancelledError

    with pytest.raises(StepCancelledError):
        performed(main)
    assert AgentRun.objects.get().status == "cancelled"


@pytest.mark.django_db(transaction=True)
def test_a_cancelled_host_task_leaves_a_cancelled_run_that_can_be_resumed() -> None:
    async def main(run_id: str | None, seconds: float) -> None:
        async with asyncio.timeout(0.2), RunContext.open(run_id) as ctx:
            ctx.result = await ctx.step("one", lambda: 1)
            await asyncio.sleep(seconds)

    with pytest.raises(TimeoutError):
        performed(main, None, 30)
    run = AgentRun.objects.get()
    assert run.status == "cancelled"
    performed(main, str(run.pk), 0)
    run.refresh_from_db()
    assert (run.status, run.final_output) == ("completed", 1)


@pytest.mark.django_db(transaction=True)
def test_a_write_that_failed_fails_the_run_even_if_the_host_swallows_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(entries: Sequence[Entry]) -> None:
        raise OperationalError("The disk is full.")

    async def main() -> None:
        async with RunContext.open() as ctx:
            try:
                await ctx.step("one", lambda: 1)
            except Exception:  # noqa: BLE001 - as careless code does
                ctx.result = "It went well."

    monkeypatch.setattr(journal_entries, "save_entries", fail)
    with pytest.raises(OperationalError):
        performed(main)
    assert AgentRun.objects.get().status == "failed"


@pytest.mark.django_db(transaction=True)
def test_a_question_suspends_the_run_even_if_the_host_swallows_it() -> None:
    async def main() -> None:
        async with RunContext.open() as ctx:
            try:
                await ctx.ask("Ship it?")
            except BaseException:  # noqa: BLE001 - as careless code does
                ctx.result = "It went well."

    with pytest.raises(RunWaiting):
        performed(main)
    run = AgentRun.objects.get()
    assert (run.status, run.final_output) == ("waiting", None)
    assert run.approvals.get().question == "Ship it?"


def test_a_completion_that_cannot_be_stored_fails_the_run_and_is_raised(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise ValueError("Not like this.")

    monkeypatch.setattr(lifecycle, "complete", refuse)
    with pytest.raises(ValueError, match="Not like this"):
        performed(working)
    run = AgentRun.objects.get()
    assert (run.status, run.error_code) == ("failed", "internal")


def test_a_decided_tool_call_that_is_not_made_again_fails_the_run(user: User) -> None:
    run = make_run(user, "pending", is_inline=True, agent_key=inline.AGENT_KEY)
    AgentRun.objects.filter(pk=run.pk).update(attempt=1)
    ToolApproval.objects.create(
        run=run, key="k", tool="pay", agent="shop", decision="approved", generation=1
    )
    with pytest.raises(AgentChanged, match="'pay'"):
        performed(working, run_id=run.pk)
    run.refresh_from_db()
    assert (run.status, run.error_code) == ("failed", "agent_changed")


# Who may execute it


@pytest.mark.django_db(transaction=True)
def test_a_running_inline_run_is_refused() -> None:
    async def main() -> None:
        async with RunContext.open() as ctx:
            with pytest.raises(Conflict):
                await working(run_id=ctx.run_id)
            ctx.result = "mine"

    performed(main)
    run = AgentRun.objects.get()
    assert (run.status, run.final_output, run.attempt) == ("completed", "mine", 1)


def test_a_completed_inline_run_is_refused() -> None:
    run_id = performed(working)
    with pytest.raises(Conflict, match="its status is Completed"):
        performed(working, run_id=run_id)


def test_a_run_for_a_worker_is_refused(user: User) -> None:
    run = make_run(user, "failed")
    with pytest.raises(Conflict, match="is for a worker"):
        performed(working, run_id=run.pk)
    run.refresh_from_db()
    assert run.status == "failed"


def test_an_invalid_id_is_refused() -> None:
    with pytest.raises(BadInput, match="run_id: 'seven' is not a UUID"):
        performed(working, run_id="seven")


def test_an_invalid_conversation_key_is_refused(user: User) -> None:
    with pytest.raises(BadInput, match="session_key"):
        performed(working, user=user, conversation_id="a/b")
    assert not AgentRun.objects.exists()


@pytest.mark.parametrize("status", ["pending", "running"])
def test_a_busy_conversation_is_refused_and_no_run_is_created(user: User, status: str) -> None:
    session = make_session(user, session_key="talk")
    make_run(user, status, session=session)
    with pytest.raises(Conflict, match="another run of its session has not ended"):
        performed(working, user=user, conversation_id="talk")
    assert AgentRun.objects.count() == 1
    session.refresh_from_db()
    assert session.run_count == 1


def test_a_run_with_a_later_run_in_its_conversation_is_refused(user: User) -> None:
    calls: Calls = []
    with pytest.raises(StepExecutionError):
        performed(
            working, noting(calls, "one", ValueError("no")), user=user, conversation_id="talk"
        )
    run = AgentRun.objects.get()
    performed(working, user=user, conversation_id="talk")
    with pytest.raises(Conflict, match="Only the last run"):
        performed(working, run_id=run.pk)
    run.refresh_from_db()
    assert run.status == "failed"


def test_the_concurrency_limit_applies_to_inline_runs(user: User, settings: Any) -> None:
    settings.AGENTIC_DJANGO_CONCURRENCY_LIMIT = 1

    async def main() -> None:
        async with RunContext.open():
            with pytest.raises(Conflict, match="the concurrency limit is reached"):
                await working()

    performed(main)
    assert AgentRun.objects.get().status == "completed"
    performed(working)


def test_no_queue_and_no_person_starts_an_inline_run(user: User, client: Client) -> None:
    with pytest.raises(ValueError, match="no"):
        performed(failing, user=user)
    run = AgentRun.objects.get()
    with pytest.raises(Conflict, match="Only the program that started"):
        retry_agent_run(run)
    assert client.post(f"/agents/runs/{run.pk}/retry/").status_code == 409
    run.refresh_from_db()
    assert run.status == "failed"
    AgentRun.objects.filter(pk=run.pk).update(status="pending")
    with pytest.raises(LookupError):
        enqueue_agent_run(run.pk)
    assert claims.claim_run(str(run.pk)) is None
    assert recovery.sweep().enqueued == 0


async def failing(**options: Any) -> None:
    """Fail within a run."""
    async with RunContext.open(**options) as ctx:
        await ctx.step("one", lambda: 1)
        raise ValueError("no")


def test_the_fragment_of_a_run_without_conversation_is_shown(user: User, client: Client) -> None:
    calls: Calls = []
    run_id = performed(working, noting(calls, "one"), user=user)
    page = client.get(f"/agents/runs/{run_id}/")
    assert page.status_code == 200
    fragment = client.get(f"/agents/runs/{run_id}/fragment/")
    assert fragment.status_code == 200
    assert f"run-container-{run_id}" in fragment.content.decode()


def test_nobody_is_offered_to_retry_an_inline_run(user: User, client: Client) -> None:
    with pytest.raises(ValueError, match="no"):
        performed(failing, user=user)
    run = AgentRun.objects.get()
    html = client.get(f"/agents/runs/{run.pk}/fragment/").content.decode()
    assert "Inline" in html
    assert "Try again</button>" not in html


# Cancelled from elsewhere


async def cancelled(then: Callable[[RunContext], Coroutine[Any, Any, None]]) -> None:
    """Perform a run that a person cancels, and go on with something."""
    async with RunContext.open() as ctx:
        await asyncio.to_thread(cancel, await AgentRun.objects.aget(pk=ctx.run_id))
        await then(ctx)


def cancel(run: AgentRun) -> None:
    """Cancel a run, on a connection of this thread's own."""
    cancel_agent_run(run)
    connections.close_all()


async def wait(ctx: RunContext) -> None:
    """Wait for what comes."""
    await asyncio.sleep(30)


async def wait_in_a_step(ctx: RunContext) -> None:
    """Wait within a step."""

    async def fn(ctx: RunContext, state: dict[str, Any]) -> None:
        await asyncio.sleep(30)

    await StepExecutor(ctx).run([Step("wait", fn, retries=3)])


async def write(ctx: RunContext) -> None:
    """Write before it is noticed."""
    await ctx.step("one", lambda: 1)


async def emit(ctx: RunContext) -> None:
    """Tell something before it is noticed."""
    await ctx.emit("mine", {})


async def swallow(ctx: RunContext) -> None:
    """Take the refusal for an ordinary error."""
    try:
        await ctx.checkpoint({"a": 1})
    except Exception:  # noqa: BLE001 - as careless code does
        await asyncio.sleep(0)


async def end(ctx: RunContext) -> None:
    """End at once."""


async def raise_own(ctx: RunContext) -> None:
    """Fail at once."""
    raise ValueError("no")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("then", [wait, wait_in_a_step, write, emit, swallow, end, raise_own])
def test_an_inline_run_cancelled_elsewhere_raises_step_cancelled(
    fast_heartbeat: None, then: Callable[[RunContext], Coroutine[Any, Any, None]]
) -> None:
    async def main() -> str:
        with pytest.raises(StepCancelledError):
            await cancelled(then)
        task = asyncio.current_task()
        await asyncio.sleep(0.2)  # Nothing of it hits what the host does next.
        assert task is not None
        assert task.cancelling() == 0
        return "went on"

    began = time.monotonic()
    assert performed(main) == "went on"
    assert time.monotonic() - began < 5
    run = AgentRun.objects.get()
    assert run.status == "cancelled"
    assert run.final_output is None
    assert not run.checkpoints.exists()


@pytest.mark.django_db(transaction=True)
def test_a_host_may_use_a_timeout_around_a_cancelled_inline_run(fast_heartbeat: None) -> None:
    async def main() -> str:
        async with asyncio.timeout(10):
            with pytest.raises(StepCancelledError):
                await cancelled(wait)
        async with asyncio.TaskGroup() as group:
            return await group.create_task(asyncio.sleep(0.01, "went on"))

    assert performed(main) == "went on"


def test_a_task_is_not_cancelled_after_its_attempt_has_ended() -> None:
    async def main() -> int:
        task = asyncio.current_task()
        assert task is not None
        lease = heartbeat.Lease(Attempt(AgentRun()), task)  # type: ignore[arg-type]
        lease.end()
        lease.lose()
        await asyncio.sleep(0.01)
        return task.cancelling()

    assert asyncio.run(main()) == 0


# Abandoned


@pytest.mark.django_db(transaction=True)
def test_a_run_whose_process_died_is_resumed_without_a_sweep(user: User) -> None:
    calls: Calls = []
    with pytest.raises(StepExecutionError):
        performed(working, noting(calls, "one"), noting(calls, "two", ValueError()), user=user)
    run = AgentRun.objects.get()
    dead = {"status": "running", "finished_at": None}
    AgentRun.objects.filter(pk=run.pk).update(**dead, lease_ends_at=Now() + timedelta(minutes=1))
    with pytest.raises(Conflict):
        performed(working, noting(calls, "one"), noting(calls, "two"), run_id=run.pk)
    AgentRun.objects.filter(pk=run.pk).update(lease_ends_at=Now() - timedelta(minutes=1))
    performed(working, noting(calls, "one"), noting(calls, "two"), run_id=run.pk)
    run.refresh_from_db()
    assert (run.status, run.attempt) == ("completed", 2)
    assert calls == ["one", "two", "two"]


def test_releasing_an_inline_run_fails_it() -> None:
    def hand_back_of(ctx: RunContext) -> Callable[[], None]:
        return lambda: lifecycle.release(Attempt(AgentRun.objects.get(pk=ctx.run_id)))

    async def main() -> None:
        async with RunContext.open() as ctx:
            await ctx.step("end", hand_back_of(ctx))

    with pytest.raises(StepCancelledError):
        performed(main)
    run = AgentRun.objects.get()
    assert (run.status, run.error_code) == ("failed", "lost")


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("kind", [str, lambda run_id: run_id])
def test_the_lease_of_an_inline_run_with_a_given_id_is_kept(
    monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.05)
    run_id = uuid4()

    async def work() -> None:
        async with RunContext.open(kind(run_id)) as ctx:
            await asyncio.sleep(1.2)  # A heart that was about to stop may sleep for a second.
            ctx.result = "kept"

    performed(work)
    assert AgentRun.objects.get(pk=run_id).final_output == "kept"


@pytest.mark.parametrize("given", [{"metadata": {"a": "\0"}}, {"params": {"a": "\ud800"}}])
def test_input_that_databases_cannot_store_is_refused_before_a_run_is_created(given: Any) -> None:
    async def work() -> None:
        async with RunContext.open(**given):
            raise AssertionError

    with pytest.raises(BadInput):
        performed(work)
    assert not AgentRun.objects.exists()
