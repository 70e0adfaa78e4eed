"""A process that ends hands back what it was doing."""

from __future__ import annotations

import pytest

from tests.support.processes import Project

SUBMIT_AND_END = """
import time
from django.contrib.auth.models import User
from agentic_django.models import AgentRun
from agentic_django.services import submit_agent_run

user = User.objects.create_user("ada")
run = submit_agent_run(owner=user, agent_key="slow", input_payload="60")
while not AgentRun.objects.filter(pk=run.pk, status="running").exists():
    time.sleep(0.05)
"""

TELL = """
from agentic_django.models import AgentRun

run = AgentRun.objects.get()
print(run.status, run.failures, run.events.latest("sequence").payload["reason"])
"""


@pytest.mark.slow
def test_a_process_with_a_thread_pool_releases_its_runs_when_it_ends(
    sqlite_project: Project,
) -> None:
    sqlite_project.extra["AGENTIC_TEST_TASKS"] = "threads"
    sqlite_project.python(SUBMIT_AND_END, timeout=40)
    assert sqlite_project.python(TELL).split() == ["pending", "0", "handed_back"]
