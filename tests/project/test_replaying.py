"""The mode of the tests that replays each attempt does replay it."""

from __future__ import annotations

from typing import Any

import pytest
from agents import function_tool
from django.contrib.auth.models import User

from agentic_django.models import AgentRun
from tests.support.agents import call_tool
from tests.support.attempts import attempt, numbered
from tests.support.replaying import replaying

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.usefixtures("no_queue")]


@pytest.mark.not_replayed
def test_an_attempt_is_performed_again_after_each_thing_it_records(
    scripted: Any, user: User
) -> None:
    called: list[str] = []

    @function_tool
    def look(place: str) -> str:
        called.append(place)
        return f"Seen {place}."

    both = [*call_tool("look", place="a"), *call_tool("look", call_id="call-2", place="b")]
    model = scripted("default", both, "Done.", tools=[look])
    run = AgentRun.objects.create(owner=user, agent_key="default", input_payload="Look")
    with replaying() as replays:
        run = attempt(run)
    assert (run.status, run.final_output, run.attempt) == ("completed", "Done.", 1)
    assert replays.count == 2  # Behind the first response, and behind both tools.
    assert sorted(called) == ["a", "b"]
    assert len(model.calls) == 2
    assert numbered(run).count("tool.output") == 2
