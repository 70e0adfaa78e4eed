"""The first block of the README is a working agent, with the call that submits a run."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from django.contrib.auth.models import User

from agentic_django.models import AgentRun
from tests.settings import ROOT
from tests.support.markdown import blocks
from tests.support.openai_server import Answer, Call, OpenAIServer

pytestmark = pytest.mark.django_db(transaction=True)

PROJECT, MODULE = "mysite", "mysite.agents"


@pytest.fixture
def first_agent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: Any
) -> Iterator[ModuleType]:
    """Import the block from the file that its first line names."""
    source = blocks(ROOT / "README.md")[0].text
    assert source.startswith("# mysite/agents.py\n")
    (tmp_path / PROJECT).mkdir()
    (tmp_path / PROJECT / "agents.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    settings.AGENTIC_DJANGO_AGENT_REGISTRY = f"{MODULE}.registry"
    yield importlib.import_module(MODULE)
    for name in (PROJECT, MODULE):
        sys.modules.pop(name, None)


def call_the_tool_and_report_its_output(body: dict[str, Any]) -> Answer:
    """Answer as a model would, in two responses."""
    assert [tool["name"] for tool in body["tools"]] == ["count_users"]
    last = body["input"][-1]
    if last.get("type") == "function_call_output":
        return f"Users: {last['output']}."
    return Call("count_users")


def test_first_agent_of_the_readme_answers_from_the_database(
    first_agent: ModuleType, user: User, other_user: User, openai_server: OpenAIServer
) -> None:
    openai_server.answer_with(call_the_tool_and_report_its_output)
    run = first_agent.ask(user, "How many users are there?")
    assert isinstance(run, AgentRun)
    run.refresh_from_db()
    assert (run.status, run.owner) == (AgentRun.Status.COMPLETED, user)
    assert run.final_output == "Users: 2."


def test_first_agent_of_the_readme_is_short() -> None:
    lines = blocks(ROOT / "README.md")[0].text.splitlines()
    assert len([line for line in lines if line and not line.startswith("#")]) <= 12
