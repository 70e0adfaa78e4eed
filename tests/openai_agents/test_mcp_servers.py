"""MCP servers of agents: connected while an attempt uses them, and cleaned up after it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from agents import Agent, Runner, handoff
from agents.mcp import MCPServerStdio
from agents.testing import ScriptedModel, assistant_message, function_call
from django.contrib.auth.models import Group, User
from django.db import connections

from agentic_django.models import AgentRun
from agentic_django.runtime import RunContext
from agentic_django.services import cancel_agent_run
from tests.support.agents import call_tool
from tests.support.attempts import attempt

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.not_replayed,  # These tests count processes, and each attempt starts its own.
]

SCRIPT = Path(__file__).parents[1] / "support" / "mcp_server.py"

type Carry = Callable[..., AgentRun]


class Servers:
    """Makes servers that are not connected, and knows the processes that they started."""

    def __init__(self, directory: Path) -> None:
        self.pid_file = directory / "pids"
        self.pid_file.touch()

    def stdio(self, **options: Any) -> MCPServerStdio:
        """Return a server that is not connected."""
        command = {"command": sys.executable, "args": [str(SCRIPT), str(self.pid_file)]}
        return MCPServerStdio(command, client_session_timeout_seconds=60, **options)

    @property
    def started(self) -> list[int]:
        """The ids of all processes that were started."""
        return [int(line) for line in self.pid_file.read_text().split()]

    @property
    def alive(self) -> list[int]:
        """The ids of the processes that exist."""
        return [pid for pid in self.started if _exists(pid)]


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.fixture
def servers(tmp_path: Path) -> Servers:
    return Servers(tmp_path)


ADD = call_tool("add", a=2, b=3)


def test_a_server_that_the_factory_did_not_connect_works_and_leaves_no_process(
    servers: Servers, scripted: Any, carry: Carry
) -> None:
    scripted("default", ADD, "Done.", mcp_servers=[servers.stdio()])
    run = carry()
    assert (run.status, run.final_output) == ("completed", "Done."), run.error
    [output] = run.events.filter(event_type="tool.output")
    assert "5" in str(output.payload["output"])
    assert len(servers.started) == 1
    assert servers.alive == []


@pytest.mark.parametrize("way", ["handoff", "agent as tool", "nested run"])
def test_servers_of_all_agents_that_a_run_reaches_are_connected(
    way: str, servers: Servers, scripted: Any, carry: Carry, register: Any
) -> None:
    model = ScriptedModel([ADD, [assistant_message("Done.")]])
    other = Agent(name="other", model=model, mcp_servers=[servers.stdio()])
    if way == "handoff":
        transfer = [function_call("transfer_to_other", {}, call_id="t1")]
        scripted("default", transfer, handoffs=[handoff(other)])
    elif way == "agent as tool":
        scripted(
            "default", call_tool("ask", input="a"), "Done.", tools=[other.as_tool("ask", "Ask.")]
        )
    else:

        async def work(ctx: RunContext) -> str:
            return str((await Runner.run(other, "Hello")).final_output)

        register(work, "default")
    run = carry()
    assert (run.status, run.final_output) == ("completed", "Done."), run.error
    assert ("tool", "add") in set(run.checkpoints.values_list("kind", "name"))
    assert len(servers.started) == 1
    assert servers.alive == []


def test_a_server_that_cannot_be_started_fails_the_run_also_in_an_agent_that_is_a_tool(
    scripted: Any, carry: Carry
) -> None:
    server = MCPServerStdio({"command": "/does/not/exist"})
    inner = Agent(name="inner", model=ScriptedModel([]), mcp_servers=[server])
    scripted("default", call_tool("ask", input="a"), "Done.", tools=[inner.as_tool("ask", "Ask.")])
    run = carry()
    assert run.status == "failed"
    assert "/does/not/exist" in run.error_detail


def test_synchronous_callbacks_of_a_server_use_the_orm(
    servers: Servers, scripted: Any, carry: Carry
) -> None:
    def called(value: Any) -> Any:
        Group.objects.create(name=f"called {Group.objects.count()}")
        return value

    server = servers.stdio(
        tool_filter=lambda context, tool: called(tool.name == "add"),
        require_approval=lambda context, agent, tool: called(False),
        tool_meta_resolver=lambda context: called(None),
    )
    scripted("default", ADD, "Done.", mcp_servers=[server])
    run = carry()
    assert (run.status, run.final_output) == ("completed", "Done."), run.error
    assert Group.objects.filter(name__startswith="called").count() >= 3


@pytest.mark.django_db(transaction=True)
def test_a_cancelled_run_leaves_no_process(
    servers: Servers, scripted: Any, user: User, no_queue: None
) -> None:
    scripted("default", call_tool("wait", seconds=60), mcp_servers=[servers.stdio()])
    run = AgentRun.objects.create(owner=user, agent_key="default", input_payload="Hello")
    with ThreadPoolExecutor(1) as pool:
        attempted = pool.submit(_attempt_and_close, run)
        _wait_until(lambda: run.events.filter(event_type="tool.called").exists())
        assert len(servers.alive) == 1
        cancel_agent_run(AgentRun.objects.get())
        attempted.result(30)
    assert AgentRun.objects.get().status == "cancelled"
    assert servers.alive == []


def _attempt_and_close(run: AgentRun) -> None:
    try:
        attempt(AgentRun.objects.get(pk=run.pk))
    finally:
        connections.close_all()


def _wait_until(is_true: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.mark.django_db(transaction=True)
def test_runs_that_share_a_server_object_share_its_connection(
    servers: Servers, scripted: Any, user: User, no_queue: None
) -> None:
    shared = servers.stdio()
    for key, seconds in (("default", 0.2), ("echo", 2)):
        steps = [call_tool("wait", seconds=seconds), *["Done."] * 2]
        scripted(key, *steps, mcp_servers=[shared])
    runs = [
        AgentRun.objects.create(owner=user, agent_key=key, input_payload="Hello")
        for key in ("default", "echo", "default")
    ]
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(_attempt_and_close, runs[:2]))
    assert [run.status for run in AgentRun.objects.order_by("created_at")[:2]] == ["completed"] * 2
    assert len(servers.started) == 1
    assert servers.alive == []
    _attempt_and_close(runs[2])
    assert len(servers.started) == 2
    assert servers.alive == []


def test_a_server_that_the_host_connected_stays_connected(
    servers: Servers, register: Any, carry: Carry
) -> None:
    async def work(ctx: RunContext) -> str:
        async with servers.stdio() as server:
            agent = Agent(
                name="a", model=ScriptedModel([[assistant_message("Done.")]]), mcp_servers=[server]
            )
            await Runner.run(agent, "Hello")
            return str(len(await server.list_tools()))

    register(work, "default")
    run = carry()
    assert (run.status, run.final_output) == ("completed", "2"), run.error
    assert servers.alive == []
