"""A database that is away ends the attempt of a tool; the error is not the tool's result."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from agents import Agent, function_tool
from agents.testing import ScriptedModel, assistant_message
from django.db import InterfaceError, OperationalError, connection, transaction

from agentic_django.models import AgentRun
from agentic_django.runtime import RunContext, ToolRegistry
from tests.support.agents import call_tool

pytestmark = pytest.mark.django_db

type Carry = Callable[..., AgentRun]


def failing_once(error: Exception) -> tuple[list[str], Callable[[str], str]]:
    """Return a list of calls, and a function that raises an error at the first one."""
    calls: list[str] = []

    def note(text: str) -> str:
        """Note."""
        calls.append(text)
        if len(calls) == 1:
            raise error
        return f"noted {text}"

    return calls, note


@pytest.mark.parametrize("error", [OperationalError("pool timeout"), InterfaceError("closed")])
@pytest.mark.parametrize("is_nested", [False, True])
def test_a_tool_without_a_database_is_called_again_by_the_next_attempt(
    error: Exception, is_nested: bool, scripted: Any, carry: Carry
) -> None:
    calls, note = failing_once(error)
    tool = function_tool(note)
    if is_nested:
        model = ScriptedModel([call_tool("note", text="a"), [assistant_message("inner")]])
        inner = Agent(name="inner", model=model, tools=[tool])
        as_tool = inner.as_tool("ask", "Ask.")
        scripted("default", call_tool("ask", input="a"), "Done.", tools=[as_tool])
    else:
        scripted("default", call_tool("note", text="a"), "Done.", tools=[tool])
    run = carry()
    assert (run.status, run.final_output, run.attempt) == ("completed", "Done.", 2), run.error
    assert calls == ["a", "a"]
    assert run.checkpoints.get(kind="tool").result == "noted a"


def test_a_tool_of_a_loop_of_the_hosts_own_is_called_again_too(register: Any, carry: Carry) -> None:
    calls, note = failing_once(OperationalError("pool timeout"))

    async def work(ctx: RunContext) -> Any:
        registry = ToolRegistry()
        registry.register(note)
        return await registry.execute("note", {"text": "a"}, call_id="c1")

    register(work, "default")
    run = carry()
    assert (run.status, run.final_output) == ("completed", "noted a"), run.error
    assert calls == ["a", "a"]


def test_an_error_of_the_statement_is_a_text_for_the_model(scripted: Any, carry: Carry) -> None:
    @function_tool
    def query() -> str:
        """Query."""
        with transaction.atomic(), connection.cursor() as cursor:
            cursor.execute("SELECT * FROM no_such_table")
        return "never"

    scripted("default", call_tool("query"), "Done.", tools=[query])
    run = carry()
    assert (run.status, run.final_output) == ("completed", "Done."), run.error
    assert "An error occurred" in run.checkpoints.get(kind="tool").result
