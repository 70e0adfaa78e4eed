"""One suite for all kinds of work: whatever drives a run, it lives, fails and resumes alike."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any
from uuid import uuid4

import pytest
from agents import Agent, function_tool
from agents.testing import ModelStep, ScriptedModel, assistant_message, function_call
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User
from django.db.models import F

from agentic_django.engine import heartbeat, recovery
from agentic_django.models import AgentRun, AgentSession, ToolApproval
from agentic_django.runtime import AgentRuntime, RunContext, RunResult, ToolRegistry
from agentic_django.services import (
    answer_approval,
    cancel_agent_run,
    decide_approval,
    retry_agent_run,
)
from agentic_django.steps import Pipeline, Step
from tests.support.agents import USAGE
from tests.support.attempts import AWAY, finish, numbered, payloads, recorded
from tests.support.processes import Project, wait_until
from tests.support.rows import make_session

KINDS = ("agent", "pipeline", "function", "class")

type Carry = Callable[..., AgentRun]
type Work = Callable[..., Talk]


class Talk:
    """A model that answers as it is told, and a tool that notes its calls."""

    def __init__(self, *answers: Any) -> None:
        self.model = ScriptedModel([_step(answer) for answer in answers], default_usage=USAGE)
        self.calls: list[str] = []
        self.act: Callable[[], Any] = lambda: None
        self.asks_first = False

    async def look(self, place: str) -> str:
        """Look somewhere."""
        self.calls.append(place)
        outcome = self.act()
        if asyncio.iscoroutine(outcome):
            await outcome
        return f"{place} is fine"

    def agent(self) -> Agent[Any]:
        """Return an agent of the SDK with both."""
        tool = function_tool(self.look, failure_error_function=None, needs_approval=self.asks_first)
        return Agent(name="talk", model=self.model, tools=[tool])

    async def by_hand(self, ctx: RunContext) -> RunResult:
        """Do by hand what the SDK's runner does."""
        tools = ToolRegistry()
        tools.register(self.look)
        messages: list[Any] = [*ctx.input_messages]
        while True:
            answer = await ctx.generate(messages, tools=tools, model=self.model)
            messages.append(answer.message)
            if not answer.tool_calls:
                return RunResult(answer.message.content, messages)
            for call in answer.tool_calls:
                asked = call["function"]
                if self.asks_first:
                    await ctx.ask("May I look?", options=["yes"])
                output = await tools.execute(asked["name"], asked["arguments"], call_id=call["id"])
                messages.append({"role": "tool", "tool_call_id": call["id"], "content": output})


def _step(answer: Any) -> Any:
    return [assistant_message(answer)] if isinstance(answer, str) else answer


LOOK = [function_call("look", {"place": "out"}, call_id="c1")]


def as_agent(talk: Talk) -> Any:
    """Return a talk as an agent's factory."""
    return talk.agent


def as_pipeline(talk: Talk) -> Any:
    """Return a talk as a pipeline of one step, which tries again what may pass."""

    async def ask(ctx: RunContext, state: dict[str, Any]) -> Any:
        return await ctx.run_agent(talk.agent(), ctx.input_messages)

    return Pipeline([Step("ask", ask, retries=1, retry_delay=0)])


def as_function(talk: Talk) -> Any:
    """Return a talk as a function."""

    async def ask(ctx: RunContext) -> Any:
        return await ctx.run_agent(talk.agent(), ctx.input_messages)

    return ask


def as_class(talk: Talk) -> Any:
    """Return a talk as a class, which does all by hand."""

    class ByHand(AgentRuntime):
        async def run(self, ctx: RunContext) -> RunResult:
            return await talk.by_hand(ctx)

    return ByHand


MAKERS = dict(zip(KINDS, (as_agent, as_pipeline, as_function, as_class), strict=True))


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    """What drives the run."""
    return str(request.param)


@pytest.fixture
def work(kind: str, register: Callable[..., None]) -> Work:
    """Register a talk as work of the kind."""

    def work(*answers: Any) -> Talk:
        talk = Talk(*answers)
        register(MAKERS[kind](talk))
        return talk

    return work


@pytest.fixture
def session(user: User) -> AgentSession:
    """A conversation of Ada's."""
    return make_session(user)


def output(run: AgentRun) -> Any:
    """Return what a run came to, of whatever kind it is."""
    return run.final_output["ask"] if isinstance(run.final_output, dict) else run.final_output


def texts(session: AgentSession, **options: Any) -> list[Any]:
    """Return the texts of a conversation."""
    return [message["content"] for message in session.get_message_history(**options)]


in_transaction = pytest.mark.django_db
committed = pytest.mark.django_db(transaction=True)


# Its life


@in_transaction
def test_it_completes(work: Work, carry: Carry) -> None:
    talk = work(LOOK, "It is fine.")
    run = carry("work")
    assert (run.status, run.attempt, run.error) == ("completed", 1, "")
    assert output(run) == "It is fine."
    assert talk.calls == ["out"]
    assert run.lease_ends_at is None
    assert run.activity == ""


@in_transaction
def test_its_calls_are_recorded_and_billed(work: Work, carry: Carry, kind: str) -> None:
    work(LOOK, "It is fine.")
    run = carry("work")
    kinds = [row[0] for row in recorded(run)]
    assert kinds == ["model", "tool", "model", *(["step"] if kind == "pipeline" else [])]
    assert run.usage == {
        "requests": 2,
        "input_tokens": 20,
        "output_tokens": 10,
        "total_tokens": 30,
    }


@in_transaction
def test_its_events_are_in_order(work: Work, carry: Carry, kind: str) -> None:
    work(LOOK, "It is fine.")
    run = carry("work")
    told = numbered(run)
    assert told[0] == "run.started"
    assert told[-1] == "run.completed"
    calls = [event for event in told if event in ("tool.called", "tool.output", "message")]
    assert calls == ["tool.called", "tool.output", "message"]
    assert payloads(run, "tool.called")[0]["arguments"] == {"place": "out"}
    assert payloads(run, "tool.output")[0]["output"] == "out is fine"
    assert payloads(run, "message")[0]["text"] == "It is fine."
    assert payloads(run, "run.completed") == [{"output": run.final_output}]


@in_transaction
def test_its_messages_join_the_conversation(
    work: Work, carry: Carry, session: AgentSession, kind: str
) -> None:
    work("Hello, you.")
    carry("work", session=session)
    said = {"pipeline": ["Hello"]}.get(kind, ["Hello", "Hello, you."])
    assert texts(session) == said


@in_transaction
def test_its_failure_has_a_code_and_a_sentence(
    work: Work, carry: Carry, session: AgentSession, kind: str
) -> None:
    work(LOOK, *[ValueError("secret")] * 2)
    run = carry("work", session=session)
    assert (run.status, run.attempt) == ("failed", 1)
    assert run.error_code == ("step_failed" if kind == "pipeline" else "internal")
    assert "secret" in run.error_detail
    assert "secret" not in run.error
    assert "secret" not in str(payloads(run, "run.failed"))
    assert run.usage["total_tokens"] == 15
    assert texts(session) == []
    assert texts(session, include_failed_runs=True)[0] == "Hello"


@in_transaction
def test_a_transient_failure_is_retried_and_recorded_calls_are_not_repeated(
    work: Work, carry: Carry, kind: str
) -> None:
    talk = work(LOOK, AWAY, "It is fine.")
    run = carry("work")
    assert output(run) == "It is fine."
    assert run.attempt == (1 if kind == "pipeline" else 2)
    assert talk.calls == ["out"]
    assert len(talk.model.calls) == 3
    assert run.usage["requests"] == 2
    assert len(payloads(run, "message")) == 1


@in_transaction
def test_it_fails_after_the_last_attempt(
    work: Work, carry: Carry, settings: Any, kind: str
) -> None:
    settings.AGENTIC_DJANGO_MAX_ATTEMPTS = 2
    talk = work(*[AWAY] * 4)
    run = carry("work")
    assert run.status == "failed"
    assert len(talk.model.calls) == 2
    assert run.error_code == ("step_failed" if kind == "pipeline" else "provider_unreachable")


@in_transaction
def test_a_person_may_retry_it_from_its_last_result(
    work: Work, carry: Carry, session: AgentSession, kind: str
) -> None:
    talk = work(LOOK, *[ValueError("no")] * (2 if kind == "pipeline" else 1), "It is fine.")
    run = carry("work", session=session)
    retry_agent_run(run)
    run = finish(run)
    assert output(run) == "It is fine."
    assert talk.calls == ["out"]
    assert texts(session)[0] == "Hello"
    assert texts(session) == texts(session, include_failed_runs=True)


@in_transaction
def test_a_person_may_start_it_from_the_beginning(work: Work, carry: Carry, kind: str) -> None:
    errors = [ValueError("no")] * (2 if kind == "pipeline" else 1)
    talk = work(LOOK, *errors, LOOK, "It is fine.")
    run = carry("work")
    retry_agent_run(run, start_again=True)
    run = finish(run)
    assert output(run) == "It is fine."
    assert talk.calls == ["out", "out"]
    assert run.usage["requests"] == 3, "What the first generation used is paid for, too."


@in_transaction
def test_it_times_out(work: Work, carry: Carry, settings: Any, session: AgentSession) -> None:
    settings.AGENTIC_DJANGO_RUN_TIMEOUT_SECONDS = 0.4
    talk = work(LOOK)
    talk.act = lambda: asyncio.sleep(30)
    began = time.monotonic()
    run = carry("work", session=session)
    assert (run.status, run.error_code) == ("timed_out", "timed_out")
    assert time.monotonic() - began < 5
    assert numbered(run)[-1] == "run.timed_out"
    assert talk.calls == ["out"]
    assert run.usage["requests"] == 1
    assert texts(session, include_failed_runs=True)[0] == "Hello"


@committed
def test_it_is_cancelled(
    work: Work, carry: Carry, session: AgentSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.05)
    talk = work(LOOK)

    async def cancel() -> None:
        await asyncio.to_thread(lambda: cancel_agent_run(AgentRun.objects.get()))
        await asyncio.sleep(30)

    talk.act = cancel
    began = time.monotonic()
    run = carry("work", session=session)
    assert run.status == "cancelled"
    assert time.monotonic() - began < 5
    assert numbered(run)[-1] == "run.cancelled"
    assert [row[0] for row in recorded(run)] == ["model"]
    assert texts(session, include_failed_runs=True)[0] == "Hello"


@in_transaction
def test_an_attempt_that_lost_its_run_changes_nothing(work: Work, carry: Carry) -> None:
    talk = work(LOOK, "It is fine.")

    async def lose() -> None:
        held = AgentRun.objects.filter(status="running")
        await asyncio.to_thread(lambda: held.update(attempt=F("attempt") + 1))

    talk.act = lose
    with pytest.raises(AssertionError, match="The run does not end: running"):
        carry("work")
    run = AgentRun.objects.get()
    assert (run.status, run.attempt, run.final_output) == ("running", 2, None)
    assert [row[0] for row in recorded(run)] == ["model"]
    assert payloads(run, "tool.output") == []


@in_transaction
def test_a_model_that_exits_fails_the_run_alone(work: Work, carry: Carry) -> None:
    talk = work(LOOK, "It is fine.")

    def leave() -> None:
        raise SystemExit(3)

    talk.act = leave
    assert carry("work").status == "failed"
    assert carry("work", given="Again?").is_finished


@in_transaction
def test_an_input_of_several_items_is_sent_to_the_model(
    work: Work, carry: Carry, session: AgentSession, kind: str
) -> None:
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "One."}]},
        {"role": "assistant", "content": "Two?"},
        {"role": "user", "content": "Three."},
    ]
    talk = work("Four.")
    run = carry("work", given=items, session=session)
    assert run.status == "completed", run.error_detail
    assert talk.model.calls[0].input == items
    said = ["One.", "Two?", "Three."]
    assert texts(session) == (said if kind == "pipeline" else [*said, "Four."])


@in_transaction
def test_odd_characters_are_kept(work: Work, carry: Carry) -> None:
    text = "half \ud83d of a smiley, and \x00"
    work([function_call("look", {"place": "\x00"}, call_id="c1")], ModelStep(output=_step(text)))
    run = carry("work")
    assert output(run) == text, run.error_detail


@in_transaction
def test_it_waits_for_a_person_and_continues(
    work: Work, carry: Carry, session: AgentSession
) -> None:
    talk = work(LOOK, "It is fine.")
    talk.asks_first = True
    run = carry("work", session=session)
    assert (run.status, run.lease_ends_at, talk.calls) == ("waiting", None, [])
    approval = ToolApproval.objects.open().select_related("run").get()
    if approval.options:
        answer_approval(approval, "yes")
    else:
        decide_approval(approval, True)
    run = finish(run)
    assert (run.status, run.failures, talk.calls) == ("completed", 0, ["out"]), run.error_detail
    assert output(run) == "It is fine."
    assert len(talk.model.calls) == 2
    assert numbered(run).count("run.waiting") == 1


@in_transaction
def test_it_is_cancelled_while_it_waits(work: Work, carry: Carry) -> None:
    talk = work(LOOK, "It is fine.")
    talk.asks_first = True
    run = carry("work")
    cancel_agent_run(run)
    assert (run.status, talk.calls) == ("cancelled", [])
    retry_agent_run(run)
    assert finish(run).status == "waiting"
    assert run.approvals.count() == 1


# A host's own run, whose process is killed


PERFORM = """
import asyncio
from tests.engine.test_conformance import perform
asyncio.run(perform("{run_id}", 60))
"""


async def perform(run_id: str, seconds: float) -> None:
    """Perform a run of the host's own: a sub-step, a while, another one."""
    async with RunContext.open(run_id) as ctx:
        await ctx.step("one", lambda: ctx.run.attempt)
        print("ready", flush=True)
        await asyncio.sleep(seconds)
        ctx.result = await ctx.step("two", lambda: ctx.run.attempt)


@pytest.mark.slow
def test_an_orphaned_inline_run_fails_is_resumable_and_is_never_queued(
    sqlite_project: Project, settings: Any, django_db_blocker: Any
) -> None:
    settings.AGENTIC_DJANGO_LEASE_SECONDS = 1.0
    sqlite_project.settings = "tests.scenarios.settings"
    sqlite_project.extra = {"AGENTIC_TEST_LEASE": "1"}
    run_id = uuid4()
    code = f"import django\ndjango.setup()\n{PERFORM.format(run_id=run_id)}"
    host = sqlite_project.process("-c", code, ready=lambda process: "ready" in process.output())
    with django_db_blocker.unblock(), sqlite_project.in_process():
        with host:
            assert recovery.sweep() == recovery.SweepResult()
            host.kill_alone()
        assert AgentRun.objects.get(pk=run_id).status == "running"
        wait_until(lambda: AgentRun.objects.orphaned().exists(), what="The lease ends.")
        assert recovery.sweep("requeue") == recovery.SweepResult(failed=1)
        run = AgentRun.objects.get(pk=run_id)
        assert (run.status, run.error_code) == ("failed", "lost")
        assert recovery.sweep("requeue") == recovery.SweepResult()
        async_to_sync(perform)(str(run_id), 0)
        run.refresh_from_db()
        assert (run.status, run.attempt, run.final_output) == ("completed", 2, 2)
        assert [row.result for row in run.checkpoints.order_by("id")] == [1, 2]
