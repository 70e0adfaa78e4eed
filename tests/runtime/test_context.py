"""Work of a host's own: what it is given, what it may do, and what is kept of it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import agents
import pytest
from agents import Agent, Runner, function_tool
from agents.testing import ScriptedModel, assistant_message, function_call
from django.contrib.auth.models import Group, User
from django.db import OperationalError
from django.test import Client

from agentic_django import registry
from agentic_django.engine import events, journal_entries, lifecycle
from agentic_django.engine.journal_entries import Entry
from agentic_django.exceptions import BadInput, NotSerializable
from agentic_django.models import AgentRun
from agentic_django.runtime import AgentRuntime, RunContext, RunResult, Runtime
from agentic_django.services import retry_agent_run
from agentic_django.steps import ExecutionState, Pipeline, Step, StepExecutor
from tests.support.agents import USAGE
from tests.support.attempts import AWAY, finish, payloads, recorded
from tests.support.rows import make_session

pytestmark = pytest.mark.django_db

type Carry = Callable[..., AgentRun]
type Register = Callable[..., None]


def saying(*answers: Any) -> ScriptedModel:
    """Return a model that answers so, one answer to a call; a str is a text."""
    steps = [[assistant_message(a)] if isinstance(a, str) else a for a in answers]
    return ScriptedModel(steps, default_usage=USAGE)


# What may be registered


async def greet(ctx: RunContext) -> str:
    """Greet."""
    return f"Hello, {ctx.user.username}"


class Greeter(AgentRuntime):
    """Greet, as a class."""

    key = "greeter"

    async def run(self, ctx: RunContext) -> RunResult:
        """Greet."""
        return RunResult(await greet(ctx))


class OwnRuntime:
    """A runtime that is none of ours."""

    async def perform(self, context: RunContext) -> RunResult:
        """Greet."""
        return RunResult(await greet(context))


async def greet_step(ctx: RunContext, state: dict[str, Any]) -> str:
    """Greet, as a step."""
    return await greet(ctx)


KINDS: dict[str, Any] = {
    "function": greet,
    "partial": partial(greet),
    "factory of a function": lambda: greet,
    "class": Greeter,
    "factory of an instance": lambda: Greeter(),
    "runtime": OwnRuntime,
    "pipeline": Pipeline([Step("greet", greet_step)]),
    "factory of a pipeline": lambda: Pipeline([Step("greet", greet_step)]),
    "agent": lambda: Agent(name="greeter", model=saying("Hello, ada")),
}


def kinds() -> dict[str, Any]:
    """Return a registry of all kinds of work."""
    return KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_work_of_any_kind_may_be_registered(register: Register, carry: Carry, kind: str) -> None:
    register(KINDS[kind])
    run = carry("work")
    assert run.status == "completed", run.error_detail
    assert run.final_output in ("Hello, ada", {"greet": "Hello, ada"})


@pytest.mark.parametrize("kind", KINDS)
def test_work_of_any_kind_may_be_named_in_the_setting(
    settings: Any, carry: Carry, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(registry, "_registry", registry._Registry())
    settings.AGENTIC_DJANGO_AGENT_REGISTRY = "tests.runtime.test_context.kinds"
    assert carry(kind).status == "completed"


def test_the_error_for_a_wrong_factory_names_the_allowed_values(
    register: Register, carry: Carry
) -> None:
    register(lambda: 42)
    run = carry("work")
    assert run.error_code == "bad_setting"
    assert "The factory of 'work' returned int. Return an agents.Agent" in run.error_detail


def test_a_class_without_run_fails_with_a_clear_error(register: Register, carry: Carry) -> None:
    class Empty(AgentRuntime):
        """Nothing."""

    register(Empty)
    assert "Empty has no run() method" in carry("work").error_detail


def test_the_apps_drivers_implement_runtime() -> None:
    assert isinstance(OwnRuntime(), Runtime)
    assert not isinstance(Greeter(), Runtime)


# What a context gives


def test_a_context_has_the_values_that_the_run_was_submitted_with(
    register: Register, carry: Carry, user: User
) -> None:
    seen = {}

    async def look(ctx: RunContext) -> None:
        names = ("run_id", "user", "conversation_id", "input_messages", "params", "metadata")
        seen.update({name: getattr(ctx, name) for name in (*names, "session", "state")})
        seen["cancelled"] = ctx.cancelled()

    register(look)
    session = make_session(user, session_key="talk")
    run = carry("work", session=session, context={"a": 1}, metadata={"b": 2})
    assert seen == {
        "run_id": str(run.pk),
        "user": user,
        "conversation_id": "talk",
        "session": session,
        "input_messages": [{"role": "user", "content": "Hello"}],
        "params": {"a": 1},
        "metadata": {"b": 2},
        "state": {},
        "cancelled": False,
    }


def test_a_run_without_session_has_no_conversation_id(register: Register, carry: Carry) -> None:
    async def look(ctx: RunContext) -> Any:
        return [ctx.session, ctx.conversation_id, ctx.input_messages]

    register(look)
    items = [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]
    assert carry("work", given=items).final_output == [None, None, items]


# Results and conversations


def history_of(register: Register, carry: Carry, user: User, result: Any) -> list[Any]:
    """Return the conversation behind a run that comes to a result."""

    async def run(ctx: RunContext) -> Any:
        return result

    register(run)
    session = make_session(user)
    done = carry("work", session=session)
    assert done.status == "completed", done.error_detail
    return session.get_message_history()


ASKED = {"role": "user", "content": "Hello"}
CALL = {"id": "c1", "type": "function", "function": {"name": "look", "arguments": "{}"}}
CALLING = {"role": "assistant", "content": "Let me look.", "tool_calls": [CALL]}
SILENT = {"role": "assistant", "content": None, "tool_calls": [CALL]}
FOUND = {"role": "tool", "tool_call_id": "c1", "content": "sunny"}
SAID = {"role": "assistant", "content": "It is sunny."}
SYSTEM = {"role": "system", "content": "Be kind."}


@pytest.mark.parametrize(
    ("result", "left"),
    [
        ("It is sunny.", [SAID]),
        (None, []),
        ({"sky": "blue"}, []),
        (RunResult("It is sunny."), [SAID]),
        (RunResult({"sky": "blue"}, [SAID]), [SAID]),
        (RunResult("ok", (CALLING, FOUND, SAID)), [CALLING, FOUND, SAID]),
        (RunResult("ok", [SILENT, FOUND, SAID]), [SILENT, FOUND, SAID]),
        (
            RunResult("ok", [{"role": "assistant", "tool_calls": [CALL]}, FOUND, SAID]),
            [SILENT, FOUND, SAID],
        ),
        (RunResult("ok", [SYSTEM, ASKED, SILENT, FOUND, SAID]), [SILENT, FOUND, SAID]),
        (RunResult("ok", [SYSTEM, ASKED, {**SAID, "content": "1"}, ASKED, SAID]), [SAID]),
        (RunResult("ok", [ASKED]), [{"role": "assistant", "content": "ok"}]),
    ],
)
def test_final_messages_are_added_to_the_conversation_after_the_input(
    register: Register, carry: Carry, user: User, result: Any, left: list[Any]
) -> None:
    assert history_of(register, carry, user, result) == [ASKED, *left]


@pytest.mark.parametrize("given", [[{"role": "robot", "content": "x"}], [{"role": "user"}]])
def test_input_that_cannot_be_read_as_messages_does_not_fail_the_run(
    register: Register, carry: Carry, user: User, given: list[Any]
) -> None:
    async def run(ctx: RunContext) -> str:
        return "done"

    register(run)
    session = make_session(user)
    run_row = carry("work", given=given, session=session)
    assert run_row.status == "completed", run_row.error_detail
    kept = [item.payload for item in session.items.order_by("sequence")]
    assert kept == [*given, {"role": "assistant", "content": "done"}]


@pytest.mark.parametrize(
    ("messages", "text"),
    [
        ("hi", "Give a list of messages, not str."),
        ({"role": "user", "content": "hi"}, "Give a list of messages, not dict."),
        (["hi"], "A message is a dict with a role, not str."),
        ([{"role": "user"}], "A message of the role 'user' cannot be read: KeyError('content')."),
        ([{"role": "assistant", "tool_calls": ["x"]}], "A message of the role 'assistant' cannot"),
        ([{"role": "robot", "content": "x"}], "A message has the role 'robot'"),
    ],
)
def test_unreadable_final_messages_are_refused_when_the_result_is_made(
    messages: Any, text: str
) -> None:
    with pytest.raises(BadInput, match=re.escape(text)):
        RunResult("ok", messages)


def test_an_sdk_agent_can_continue_the_conversation_of_a_hand_written_loop(
    register: Register, carry: Carry, user: User
) -> None:
    async def run(ctx: RunContext) -> RunResult:
        return RunResult("ok", [*ctx.input_messages, SILENT, FOUND, SAID])

    model = saying("You are welcome.")
    register(run)
    register(lambda: Agent(name="sdk", model=model), "sdk")
    session = make_session(user)
    carry("work", session=session)
    assert carry("sdk", given="Thanks.", session=session).status == "completed"
    called = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"}
    assert model.calls[0].input == [
        ASKED,
        called,
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
        SAID,
        {"role": "user", "content": "Thanks."},
    ]


def test_a_function_may_pass_the_conversation_to_the_sdk(
    register: Register, carry: Carry, user: User
) -> None:
    model = saying("One.", "Two.")

    async def run(ctx: RunContext) -> str:
        agent = Agent(name="sdk", model=model)
        result = await Runner.run(agent, ctx.run.input_payload, session=ctx.history)
        return str(result.final_output)

    register(run)
    session = make_session(user)
    carry("work", session=session)
    carry("work", given="And?", session=session)
    texts = [message["content"] for message in session.get_message_history()]
    assert texts == ["Hello", "One.", "And?", "Two."]
    assert len(model.calls[1].input) == 3


def test_an_output_that_is_not_json_fails_the_run(register: Register, carry: Carry) -> None:
    async def run(ctx: RunContext) -> Any:
        return object()

    register(run)
    assert carry("work").error_code == "not_serializable"


# Events


def test_emitted_events_have_the_visibility_of_their_type(register: Register, carry: Carry) -> None:
    async def run(ctx: RunContext) -> None:
        await ctx.emit("my.event", {"a": 1})
        await ctx.emit("my.event", {"a": 2}, visibility="user")
        await ctx.emit("log", {"message": "m", "level": "info"})
        await ctx.emit("message", {"text": "t", "agent": "x"}, "internal")
        await ctx.emit_user_message("Half way.")
        await ctx.emit_error(ValueError("no"))
        await ctx.emit_error("a text", {"code": 7})

    register(run)
    run_ = carry("work")
    rows = run_.events.exclude(event_type__startswith="run.").order_by("sequence")
    assert [(row.event_type, row.visibility, row.payload) for row in rows] == [
        ("my.event", "internal", {"a": 1}),
        ("my.event", "user", {"a": 2}),
        ("log", "debug", {"message": "m", "level": "info"}),
        ("message", "internal", {"text": "t", "agent": "x"}),
        ("message", "user", {"text": "Half way.", "agent": "work"}),
        ("error", "debug", {"error": "no", "type": "ValueError"}),
        ("error", "debug", {"error": "a text", "type": "", "code": 7}),
    ]


def test_the_payload_of_an_error_event_cannot_replace_its_own_fields(
    register: Register, carry: Carry
) -> None:
    async def run(ctx: RunContext) -> str:
        with pytest.raises(BadInput, match="cannot have 'type'"):
            await ctx.emit_error("a text", {"type": "mine"})
        return "Done."

    register(run)
    assert carry("work").final_output == "Done."


def test_the_setting_is_merged_over_the_default_visibilities(
    register: Register, carry: Carry, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_EVENT_VISIBILITY = {"my.event": "user", "step.started": "debug"}
    assert events.default_visibility("my.event") == "user"
    assert events.default_visibility("step.started") == "debug"
    assert events.default_visibility("step.completed") == "user"
    assert events.default_visibility("other.event") == "internal"

    async def run(ctx: RunContext) -> None:
        await ctx.emit("my.event", {})

    register(run)
    assert carry("work").events.get(event_type="my.event").visibility == "user"


@pytest.mark.parametrize(
    ("payload", "visibility", "error"),
    [({"a": object()}, None, NotSerializable), ({}, "public", ValueError)],
)
def test_an_event_that_cannot_be_written_is_refused_and_writes_nothing(
    register: Register, carry: Carry, payload: Any, visibility: Any, error: type[Exception]
) -> None:
    async def run(ctx: RunContext) -> str:
        with pytest.raises(error):
            await ctx.emit("my.event", payload, visibility)
        return "went on"

    register(run)
    run_ = carry("work")
    assert run_.final_output == "went on"
    assert not run_.events.filter(event_type="my.event").exists()


async def emits_all(ctx: RunContext) -> None:
    """Emit an event of each visibility."""
    for visibility in ("user", "debug", "internal"):
        await ctx.emit(f"my.{visibility}", {}, visibility)


def seen_by(client: Client, run: AgentRun, query: str = "") -> Any:
    """Return the types of a run's own events that a client sees, or the status of a refusal."""
    response = client.get(f"/agents/runs/{run.pk}/events/{query}", headers={"Accept": "*/*"})
    if response.status_code != 200:
        return response.status_code
    kinds = [event["event_type"] for event in response.json()["events"]]
    return [kind for kind in kinds if kind.startswith("my.")]


def test_users_see_user_events_and_staff_may_ask_for_more(
    register: Register, carry: Carry, client: Client, user: User, settings: Any
) -> None:
    register(emits_all)
    run = carry("work")
    assert seen_by(client, run) == ["my.user"]
    assert seen_by(client, run, "?visibility=debug") == 403
    settings.AGENTIC_DJANGO_SHOW_DEBUG_EVENTS = True
    assert seen_by(client, run) == ["my.user", "my.debug"]
    settings.AGENTIC_DJANGO_SHOW_DEBUG_EVENTS = False
    User.objects.filter(pk=user.pk).update(is_staff=True)
    assert seen_by(client, run) == ["my.user"]
    assert seen_by(client, run, "?visibility=debug") == ["my.user", "my.debug"]


# What is kept over attempts


def flaky(work: Callable[[RunContext], Any]) -> Any:
    """Return a function runtime whose first attempt is lost behind its work."""

    async def run(ctx: RunContext) -> Any:
        result = await work(ctx)
        if ctx.run.attempt == 1:
            raise AWAY
        return result

    return run


def test_the_next_attempt_reads_the_saved_state(register: Register, carry: Carry) -> None:
    seen = []

    async def run(ctx: RunContext) -> dict[str, Any]:
        seen.append([await ctx.get_checkpoint(), dict(ctx.state)])
        ctx.state["n"] = ctx.state.get("n", 0) + 1
        await ctx.checkpoint()
        await ctx.checkpoint()
        ctx.state["lost"] = True
        if ctx.run.attempt < 3:
            raise AWAY
        return await ctx.get_checkpoint() or {}

    register(run)
    run_ = carry("work")
    assert seen == [[None, {}], [{"n": 1}, {"n": 1}], [{"n": 2}, {"n": 2}]]
    assert run_.final_output == {"n": 3}
    assert recorded(run_) == [("state", "state")]


def test_the_saved_state_may_be_any_json(register: Register, carry: Carry) -> None:
    async def work(ctx: RunContext) -> Any:
        before = await ctx.get_checkpoint()
        await ctx.checkpoint({"cursor": 7})
        return before

    register(flaky(work))
    assert carry("work").final_output == {"cursor": 7}


def test_a_state_that_is_not_json_is_refused(register: Register, carry: Carry) -> None:
    async def run(ctx: RunContext) -> str:
        with pytest.raises(NotSerializable):
            await ctx.checkpoint({"a": object()})
        return "went on"

    register(run)
    run_ = carry("work")
    assert run_.final_output == "went on"
    assert recorded(run_) == []


def test_get_checkpoint_returns_a_copy(register: Register, carry: Carry) -> None:
    async def run(ctx: RunContext) -> Any:
        await ctx.checkpoint({"list": []})
        (await ctx.get_checkpoint() or {})["list"].append(1)
        return await ctx.get_checkpoint()

    register(run)
    assert carry("work").final_output == {"list": []}


def test_a_crash_loop_that_saves_the_same_state_ends(
    register: Register, carry: Carry, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_MAX_ATTEMPTS = 3

    async def run(ctx: RunContext) -> None:
        await ctx.checkpoint({"started": True})
        raise AWAY

    register(run)
    run_ = carry("work")
    assert (run_.status, run_.attempt) == ("failed", 3)


def test_a_run_whose_state_progresses_is_not_failed(
    register: Register, carry: Carry, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_MAX_ATTEMPTS = 3

    async def run(ctx: RunContext) -> int:
        ctx.state["page"] = ctx.state.get("page", 0) + 1
        await ctx.checkpoint()
        if ctx.state["page"] < 6:
            raise AWAY
        return int(ctx.state["page"])

    register(run)
    assert carry("work").final_output == 6


def test_starting_over_discards_the_saved_state(register: Register, carry: Carry) -> None:
    async def run(ctx: RunContext) -> Any:
        before = await ctx.get_checkpoint()
        await ctx.checkpoint({"n": 1})
        if ctx.run.attempt == 1:
            raise ValueError("no")
        return before

    register(run)
    run_ = carry("work")
    retry_agent_run(run_, start_again=True)
    assert finish(run_).final_output is None


def test_a_named_step_is_executed_once_over_all_attempts(register: Register, carry: Carry) -> None:
    calls = []

    async def one(n: int, *, by: int) -> int:
        calls.append("one")
        return n * by

    def two() -> int:
        calls.append("two")
        return Group.objects.count()

    async def work(ctx: RunContext) -> list[Any]:
        nothing = await ctx.step("nothing", lambda: calls.append("nothing"))
        return [await ctx.step("one", one, 2, by=3), await ctx.step("two", two), nothing]

    register(flaky(work))
    run = carry("work")
    assert run.final_output == [6, 0, None]
    assert calls == ["nothing", "one", "two"]
    assert recorded(run) == [("step", "nothing"), ("step", "one"), ("step", "two")]


def test_a_step_result_that_is_not_json_is_not_recorded(register: Register, carry: Carry) -> None:
    async def run(ctx: RunContext) -> str:
        with pytest.raises(NotSerializable, match="result of 'bad'"):
            await ctx.step("bad", object)
        return "went on"

    register(run)
    run_ = carry("work")
    assert run_.final_output == "went on"
    assert recorded(run_) == []


def test_a_host_may_use_steps_within_its_own_runtime(register: Register, carry: Carry) -> None:
    calls = []

    async def one(ctx: RunContext, state: dict[str, Any]) -> int:
        calls.append("one")
        return 1

    async def work(ctx: RunContext) -> Any:
        return await StepExecutor(ctx).run([Step("one", one)])

    register(flaky(work))
    run = carry("work")
    assert run.final_output == {"one": 1}
    assert calls == ["one"]
    assert ExecutionState.for_run(run).completed_steps == ["one"]


# Agents of the SDK within other work


def test_an_agent_within_a_function_is_journaled(register: Register, carry: Carry) -> None:
    looks = []

    @function_tool
    def look() -> str:
        """Look out of the window."""
        looks.append(1)
        return "sunny"

    model = saying([function_call("look", {}, call_id="c1")], "It is sunny.")

    async def work(ctx: RunContext) -> Any:
        return await ctx.run_agent(Agent(name="sky", model=model, tools=[look]), "How is it?")

    register(flaky(work))
    run = carry("work")
    assert run.final_output == "It is sunny."
    assert (len(model.calls), len(looks)) == (2, 1)
    assert recorded(run) == [("model", "sky"), ("tool", "look"), ("model", "sky")]
    assert run.usage["total_tokens"] == 30
    assert run.usage["requests"] == 2
    assert run.texts == ["It is sunny."]


def test_a_runner_that_a_function_calls_itself_is_journaled(
    register: Register, carry: Carry
) -> None:
    model = saying("One.", "Two.")

    async def work(ctx: RunContext) -> list[Any]:
        agent = Agent(name="sdk", model=model)
        return [(await Runner.run(agent, text)).final_output for text in ("a", "b")]

    register(flaky(work))
    run = carry("work")
    assert run.final_output == ["One.", "Two."]
    assert len(model.calls) == 2
    assert run.usage["total_tokens"] == 30


@pytest.mark.not_replayed  # Left out at another place, the same question gets the same answer.
def test_each_agent_replays_its_own_input_when_earlier_ones_are_skipped(
    register: Register, carry: Carry
) -> None:
    model = saying("of a", "of b", "of b, again")

    async def work(ctx: RunContext) -> dict[str, Any]:
        agent = Agent(name="sdk", model=model)
        for text in ("a", "b"):
            if text not in ctx.state:  # Left out by the second attempt, of which this is the point.
                ctx.state[text] = await ctx.run_agent(agent, text)
                await ctx.checkpoint()
            if text == "a" and ctx.run.attempt == 1:
                raise AWAY
        ctx.state["again"] = await ctx.run_agent(agent, "b")
        return ctx.state

    register(work)
    run = carry("work")
    assert run.final_output == {"a": "of a", "b": "of b", "again": "of b, again"}
    assert len(model.calls) == 3


def test_each_question_replays_its_own_answer_when_earlier_ones_are_skipped(
    register: Register, carry: Carry
) -> None:
    model = saying("of a", "of b")

    async def work(ctx: RunContext) -> dict[str, Any]:
        for text in ("a", "b"):
            if text not in ctx.state:
                asked = [{"role": "user", "content": text}]
                ctx.state[text] = (await ctx.generate(asked, model=model)).message.content
                await ctx.checkpoint()
            if text == "a" and ctx.run.attempt == 1:
                raise AWAY
        return ctx.state

    register(work)
    assert carry("work").final_output == {"a": "of a", "b": "of b"}


def test_an_agent_within_a_step_has_a_stable_key_when_earlier_steps_are_skipped(
    register: Register, carry: Carry
) -> None:
    model = saying("of one", "of two", "of three")
    calls = []

    def asking(name: str) -> Step:
        async def fn(ctx: RunContext, state: dict[str, Any]) -> Any:
            answer = await ctx.run_agent(Agent(name="sdk", model=model), "The same question.")
            calls.append(name)
            if name == "two" and calls.count("two") == 1:
                raise ValueError("no")
            return answer

        return Step(name, fn)

    register(Pipeline([asking("one"), asking("two"), asking("three")]))
    run = carry("work")
    keys = set(run.checkpoints.values_list("key", flat=True))
    retry_agent_run(run)
    run = finish(run)
    assert run.final_output == {"one": "of one", "two": "of two", "three": "of three"}
    assert calls == ["one", "two", "two", "three"]
    assert len(model.calls) == 3
    assert keys <= set(run.checkpoints.values_list("key", flat=True))
    assert run.usage["total_tokens"] == 45


def test_a_retried_step_replays_the_answers_of_its_failed_try(
    register: Register, carry: Carry
) -> None:
    model = saying("paid for")
    tries = []

    async def fn(ctx: RunContext, state: dict[str, Any]) -> Any:
        answer = await ctx.generate([{"role": "user", "content": "?"}], model=model)
        tries.append(1)
        if len(tries) < 3:
            raise ValueError("no")
        return answer.message.content

    register(Pipeline([Step("ask", fn, retries=2, retry_delay=0)]))
    assert carry("work").final_output == {"ask": "paid for"}
    assert len(model.calls) == 1


def test_messages_of_an_agent_within_a_step_are_not_shown_to_the_user(
    register: Register, carry: Carry
) -> None:
    async def fn(ctx: RunContext, state: dict[str, Any]) -> Any:
        return await ctx.run_agent(Agent(name="sdk", model=saying("Between us.")), "Go.")

    register(Pipeline([Step("ask", fn)]))
    run = carry("work")
    assert payloads(run, "message") == [{"text": "Between us.", "agent": "sdk"}]
    assert run.events.get(event_type="message").visibility == "debug"


def test_a_failed_run_leaves_the_messages_of_its_agent_in_the_conversation(
    register: Register, carry: Carry, user: User
) -> None:
    async def run(ctx: RunContext) -> None:
        await ctx.run_agent(Agent(name="sdk", model=saying("Before the fall.")), "Hello")
        raise ValueError("no")

    register(run)
    session = make_session(user)
    assert carry("work", session=session).status == "failed"
    history = session.get_message_history(include_failed_runs=True)
    assert [message["content"] for message in history] == ["Hello", "Before the fall."]


def test_a_write_that_failed_ends_the_attempt_even_if_the_host_swallows_it(
    register: Register, carry: Carry, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = journal_entries.save_entries
    failures = [OperationalError("The database is away.")]

    def fail_once(entries: Sequence[Entry]) -> None:
        if failures:
            raise failures.pop()
        save(entries)

    async def run(ctx: RunContext) -> str:
        try:
            return str(await ctx.step("one", lambda: "done"))
        except Exception as error:
            raise ValueError("Something else.") from error

    monkeypatch.setattr(journal_entries, "save_entries", fail_once)
    register(run)
    run_ = carry("work")
    assert (run_.status, run_.attempt) == ("completed", 2)
    assert run_.final_output == "done"


def test_an_agents_own_tool_sees_its_run(register: Register, carry: Carry) -> None:
    seen = []

    @function_tool
    def look(ctx: agents.RunContextWrapper[Any]) -> str:
        """Look."""
        seen.append(str(ctx.context.pk))
        return "ok"

    model = saying([function_call("look", {}, call_id="c1")], "Done.")

    async def run(ctx: RunContext) -> Any:
        return await ctx.run_agent(Agent(name="sdk", model=model, tools=[look]), "Go.")

    register(run)
    assert carry("work").final_output == "Done."
    assert seen == [str(AgentRun.objects.get().pk)]


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


@pytest.mark.parametrize("output", [10**5000, nested(600), nested(960)], ids=["big", "600", "960"])
def test_an_output_that_cannot_be_stored_fails_the_run(
    register: Register, carry: Carry, output: Any
) -> None:
    async def work(ctx: RunContext) -> Any:
        return output

    register(work)
    run = carry("work")
    assert (run.status, run.error_code, run.attempt) == ("failed", "not_serializable", 1)


def test_a_completion_that_cannot_be_written_fails_the_run(
    register: Register, carry: Carry, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(ctx: RunContext) -> Any:
        return "done"

    def refuse(*args: Any) -> None:
        raise ValueError("This cannot be written.")

    monkeypatch.setattr(lifecycle, "complete", refuse)
    register(work)
    run = carry("work")
    assert (run.status, run.attempt, run.final_output) == ("failed", 1, None)


@pytest.mark.parametrize("kind", ["", "a\0", "x" * 65])
def test_an_event_type_that_does_not_fit_its_column_is_refused(
    register: Register, carry: Carry, kind: str
) -> None:
    async def work(ctx: RunContext) -> Any:
        with pytest.raises(ValueError, match="An event's type"):
            await ctx.emit(kind, {})
        return "done"

    register(work)
    assert carry("work").final_output == "done"


def test_an_unknown_visibility_hides_the_event_and_does_not_fail_the_run(
    register: Register, carry: Carry, settings: Any
) -> None:
    async def work(ctx: RunContext) -> Any:
        return "done"

    settings.AGENTIC_DJANGO_EVENT_VISIBILITY = {"run.completed": "public"}
    register(work)
    run = carry("work")
    assert run.status == "completed"
    assert run.events.get(event_type="run.completed").visibility == "internal"
