"""A conversation as messages that every framework reads, across runs of any kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from agents import function_tool
from agents.testing import assistant_message, function_call
from django.contrib.auth.models import User

from agentic_django.engine import session_items
from agentic_django.models import AgentRun, AgentSession
from agentic_django.runtime import RunContext, RunResult
from agentic_django.serialization import to_messages
from agentic_django.services import retry_agent_run
from tests.support.attempts import finish
from tests.support.rows import make_session

pytestmark = pytest.mark.django_db

type Carry = Callable[..., AgentRun]
type Register = Callable[..., None]


@function_tool
def look(place: str) -> str:
    """Look somewhere."""
    return f"{place} is fine"


def said(role: str, content: Any) -> dict[str, Any]:
    """Return a message."""
    return {"role": role, "content": content}


def calling(content: Any, *calls: tuple[str, str]) -> dict[str, Any]:
    """Return an assistant's message with calls of ``look``."""
    functions = [
        {"id": n, "type": "function", "function": {"name": "look", "arguments": a}}
        for n, a in calls
    ]
    return {"role": "assistant", "content": content, "tool_calls": functions}


def found(call_id: str, content: str) -> dict[str, Any]:
    """Return a tool's message."""
    return {"role": "tool", "tool_call_id": call_id, "content": content}


@pytest.fixture
def session(user: User) -> AgentSession:
    """A conversation of Ada's."""
    return make_session(user)


def test_an_empty_conversation_has_no_messages(session: AgentSession) -> None:
    assert session.get_message_history() == []
    assert session.get_last_assistant_message() is None


def test_the_history_holds_what_every_kind_of_run_said(
    scripted: Any, register: Register, carry: Carry, session: AgentSession
) -> None:
    async def by_hand(ctx: RunContext) -> RunResult:
        call = calling("Wait.", ("c3", '{"place":"up"}'))
        return RunResult(1, [call, found("c3", "up is fine"), said("assistant", "Up, too.")])

    both = [
        function_call("look", {"place": "in"}, call_id="c1"),
        function_call("look", {"place": "out"}, call_id="c2"),
    ]
    scripted("default", [assistant_message("Let me see."), *both], "Both fine.", tools=[look])
    register(by_hand)
    carry(session=session)
    carry("work", given=[said("user", "And up?")], session=session)
    history = [
        said("user", "Hello"),
        calling("Let me see.", ("c1", '{"place":"in"}'), ("c2", '{"place":"out"}')),
        found("c1", "in is fine"),
        found("c2", "out is fine"),
        said("assistant", "Both fine."),
        said("user", "And up?"),
        calling("Wait.", ("c3", '{"place":"up"}')),
        found("c3", "up is fine"),
        said("assistant", "Up, too."),
    ]
    assert session.get_message_history() == history
    assert session.get_last_assistant_message() == said("assistant", "Up, too.")


def test_what_failed_runs_left_is_included_only_if_asked_for(
    scripted: Any, carry: Carry, session: AgentSession
) -> None:
    scripted("default", "First.")
    carry(session=session)
    call = function_call("look", {"place": "in"}, call_id="c1")
    scripted("default", [call], ValueError("no"), tools=[look])
    run = carry(given="Go on.", session=session)
    assert run.status == "failed"
    before = [said("user", "Hello"), said("assistant", "First.")]
    assert session.get_message_history() == before
    assert session.get_last_assistant_message() == said("assistant", "First.")
    left = [said("user", "Go on."), calling(None, ("c1", '{"place":"in"}'))]
    history = session.get_message_history(include_failed_runs=True)
    assert history == [*before, *left, found("c1", "in is fine")]
    scripted("default", [call], "Second.", tools=[look])
    retry_agent_run(run)
    finish(run)
    assert session.get_last_assistant_message() == said("assistant", "Second.")
    assert session.get_message_history(include_failed_runs=True) == session.get_message_history()


def test_the_last_message_is_the_last_that_has_text(session: AgentSession) -> None:
    call = {"type": "function_call", "call_id": "c", "name": "look", "arguments": "{}"}
    session_items.append_items(session, [said("user", "Hi."), said("assistant", "Hello."), call])
    session_items.append_items(session, [said("user", "Anybody?")])
    last = session.get_last_assistant_message()
    assert last is not None
    assert last["content"] == "Hello."


def test_what_a_host_wrote_itself_is_part_of_the_history(session: AgentSession) -> None:
    session_items.append_items(session, [said("user", "Hi."), said("assistant", "Hello.")])
    assert len(session.get_message_history()) == 2


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ([{"type": "reasoning", "id": "r", "summary": []}], []),
        (
            [{"role": "user", "content": [{"type": "input_text", "text": "a"}]}],
            [said("user", "a")],
        ),
        (
            [
                {
                    "type": "message",
                    "id": "m",
                    "role": "assistant",
                    "status": "completed",
                    "content": [
                        {"type": "output_text", "text": "a", "annotations": []},
                        {"type": "output_text", "text": "b", "annotations": []},
                    ],
                }
            ],
            [said("assistant", "ab")],
        ),
        (
            [{"role": "user", "content": [{"type": "input_image", "image_url": "u"}]}],
            [said("user", [{"type": "image_url", "image_url": {"url": "u"}}])],
        ),
        (
            [
                {
                    "type": "function_call_output",
                    "call_id": "c",
                    "output": [{"type": "input_text", "text": "a"}],
                }
            ],
            [found("c", '[{"type":"input_text","text":"a"}]')],
        ),
        ([{"role": "system", "content": "Be kind."}], [said("system", "Be kind.")]),
    ],
)
def test_items_of_the_sdk_become_plain_messages(items: list[Any], messages: list[Any]) -> None:
    assert to_messages(items) == messages


def test_refusals_pictures_and_custom_tools_are_in_the_chat_format() -> None:
    refused = {"type": "refusal", "refusal": "I cannot."}
    picture = {"type": "input_image", "image_url": "data:image/png;base64,AA", "detail": "low"}
    items = [
        {"role": "user", "content": [{"type": "input_text", "text": "Look"}, picture]},
        {"type": "custom_tool_call", "call_id": "c1", "name": "sql", "input": "SELECT 1"},
        {"type": "custom_tool_call_output", "call_id": "c1", "output": "1"},
        {"role": "assistant", "content": [refused]},
    ]
    url = {"url": "data:image/png;base64,AA", "detail": "low"}
    custom = {"id": "c1", "type": "custom", "custom": {"name": "sql", "input": "SELECT 1"}}
    parts = [{"type": "text", "text": "Look"}, {"type": "image_url", "image_url": url}]
    assert to_messages(items) == [
        said("user", parts),
        {"role": "assistant", "content": None, "tool_calls": [custom]},
        found("c1", "1"),
        said("assistant", "I cannot."),
    ]
