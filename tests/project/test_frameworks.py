"""Agents of other frameworks are runs like any other: the how-to pages' own code, executed.

The models are the frameworks' own test doubles, which need no network.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db.models.functions import Now
from langchain_core.language_models.fake_chat_models import GenericFakeChatModel
from langchain_core.messages import AIMessage
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.test import TestModel as PydanticAITestModel

from agentic_django.concurrency import event_loop
from agentic_django.engine import recovery
from agentic_django.models import AgentRun, AgentSession
from agentic_django.services import submit_agent_run
from tests.settings import ROOT
from tests.support.attempts import AWAY, attempt, finish, numbered, recorded
from tests.support.markdown import blocks

REGISTRY = "mysite.page.registry"


def page(name: str, model: Any, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """Return the module that a how-to page shows, with a model, as the site's registry."""
    code = next(b for b in blocks(ROOT / f"docs/how-to/{name}.md") if b.language == "python")
    llm, module = ModuleType("mysite.llm"), ModuleType("mysite.page")
    vars(llm)["model"] = model
    for made in (ModuleType("mysite"), llm, module):
        monkeypatch.setitem(sys.modules, made.__name__, made)
    vars(sys.modules["mysite"]).update(llm=llm, page=module)
    exec(compile(code.text, f"{name}.md", "exec"), vars(module))
    return module


@dataclass
class Framework:
    """One framework at work: its agent, what its model was asked, and what befalls a call."""

    key: str
    answer: str
    calls: list[str] = field(default_factory=list)
    lengths: list[int] = field(default_factory=list)
    trouble: list[Callable[[], None] | Exception | None] = field(default_factory=list)

    async def note(self, call: str, messages: list[Any]) -> None:
        """Write a call down, and do to it what the test wants."""
        self.calls.append(call)
        self.lengths.append(len(messages))
        trouble = self.trouble.pop(0) if self.trouble else None
        if isinstance(trouble, Exception):
            raise trouble
        if trouble is not None:
            await event_loop.run_sync(trouble)


def langgraph(monkeypatch: pytest.MonkeyPatch) -> Framework:
    """A graph of two nodes, each of which asks a chat model of LangChain's."""
    made = Framework("researcher", "Answer from the list.")

    class Model(GenericFakeChatModel):
        async def _agenerate(self, messages: Any, *args: Any, **kwargs: Any) -> Any:
            await made.note(messages[0].content, messages)
            self.messages = iter([AIMessage(messages[0].content)])
            return await super()._agenerate(messages, *args, **kwargs)

    page("langgraph", Model(messages=iter([])), monkeypatch)
    return made


def pydantic_ai(monkeypatch: pytest.MonkeyPatch) -> Framework:
    """An agent of pydantic-ai that calls a tool, and tells what came of it."""
    made = Framework("desk", "Users: 1.")

    async def answer(messages: list[Any], info: Any) -> ModelResponse:
        newest = messages[-1].parts[-1]
        await made.note("tell" if isinstance(newest, ToolReturnPart) else "ask", messages)
        if isinstance(newest, ToolReturnPart):
            return ModelResponse(parts=[TextPart(f"Users: {newest.content}.")])
        return ModelResponse(parts=[ToolCallPart("count_users", {})])

    page("pydantic-ai", FunctionModel(answer), monkeypatch)
    return made


@pytest.fixture(params=[langgraph, pydantic_ai], ids=lambda make: make.__name__)
def framework(
    request: pytest.FixtureRequest, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Framework]:
    """Each framework in turn."""
    made = request.param(monkeypatch)
    settings.AGENTIC_DJANGO_AGENT_REGISTRY = REGISTRY
    yield made
    assert made.trouble == []


@pytest.fixture
def run(user: Any, no_queue: None, framework: Framework) -> AgentRun:
    """A run of the framework's agent, to be carried by the test."""
    return submit_agent_run(owner=user, input_payload="Who is here?", agent_key=framework.key)


def test_an_agent_of_another_framework_runs_to_its_answer(
    run: AgentRun, framework: Framework
) -> None:
    assert finish(run).status == "completed"
    assert run.final_output == framework.answer
    assert len(framework.calls) == 2
    assert [kind for kind, _ in recorded(run)] == ["step"] * len(recorded(run))


def test_it_runs_under_the_immediate_backend(
    user: Any, framework: Framework, django_capture_on_commit_callbacks: Any
) -> None:
    with django_capture_on_commit_callbacks(execute=True):
        run = submit_agent_run(owner=user, input_payload="Who?", agent_key=framework.key)
    run.refresh_from_db()
    assert (run.status, run.final_output) == ("completed", framework.answer)


def test_it_tells_of_itself_by_events(run: AgentRun, framework: Framework) -> None:
    own = {"researcher": "message", "desk": "desk.tool"}[framework.key]
    finish(run)
    assert numbered(run) == ["run.started", own, "run.completed"]


def test_its_answer_joins_the_conversation_and_is_known_to_the_next_run(
    user: Any, no_queue: None, framework: Framework
) -> None:
    for text in ("Who is here?", "And now?"):
        run = submit_agent_run(
            owner=user, input_payload=text, agent_key=framework.key, session_key="talk"
        )
        assert finish(run).status == "completed"
    session = AgentSession.objects.get(session_key="talk")
    said = session.get_message_history()
    assert [message["role"] for message in said] == ["user", "assistant"] * 2
    assert said[1]["content"] == framework.answer
    assert framework.lengths[2:] == [length + 2 for length in framework.lengths[:2]]


def test_what_is_done_is_not_done_again_after_a_failure(
    run: AgentRun, framework: Framework
) -> None:
    framework.trouble = [None, AWAY]
    assert attempt(run).status == "pending"
    before = recorded(run)
    assert before
    assert finish(run).final_output == framework.answer
    first, second = framework.calls[:2]
    assert framework.calls == [first, second, second]
    assert recorded(run)[: len(before)] == before
    assert numbered(run).count("run.started") == 2


def test_what_is_done_is_not_done_again_by_another_worker(
    run: AgentRun, framework: Framework
) -> None:
    def lost() -> None:
        """Take the run away from the attempt that is in this call."""
        AgentRun.objects.filter(pk=run.pk).update(lease_ends_at=Now())
        recovery.sweep()

    framework.trouble = [None, lost]
    assert attempt(run).status == "pending"
    assert finish(run).final_output == framework.answer
    first, second = framework.calls[:2]
    assert framework.calls == [first, second, second]


def test_a_tool_of_pydantic_ai_is_not_called_again(
    user: Any, no_queue: None, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = pydantic_ai(monkeypatch)
    settings.AGENTIC_DJANGO_AGENT_REGISTRY = REGISTRY
    made.trouble = [None, AWAY]
    run = submit_agent_run(owner=user, input_payload="Who is here?", agent_key="desk")
    attempt(run)
    User.objects.create_user("bob")
    assert finish(run).final_output == "Users: 1."


def test_a_test_model_of_pydantic_ai_needs_no_script(
    user: Any, no_queue: None, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    page("pydantic-ai", PydanticAITestModel(), monkeypatch)
    settings.AGENTIC_DJANGO_AGENT_REGISTRY = REGISTRY
    run = finish(submit_agent_run(owner=user, input_payload="Hello", agent_key="desk"))
    assert run.final_output == '{"count_users":1}'
