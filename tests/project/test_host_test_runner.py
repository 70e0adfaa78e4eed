"""The tests of a host with Django's own test runner, on PostgreSQL."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.settings import ROOT
from tests.support import servers
from tests.support.processes import Project

TESTING = (ROOT / "docs" / "how-to" / "testing.md").read_text()

MORE = """
from django.contrib.auth.models import User
from django.test import TestCase, TransactionTestCase

from agentic_django.services import submit_agent_run


class MoreTests(TransactionTestCase):
    def test_a_run_of_a_page(self):
        self.client.force_login(User.objects.create_user("ada"))
        made = self.client.post("/agents/runs/", {"input": "staff", "agent_key": "sync_tool"})
        self.assertEqual(made.status_code, 201)
        self.assertEqual(self.client.get("/agents/").status_code, 200)

    def test_a_failing_run(self):
        ada = User.objects.create_user("ada")
        run = submit_agent_run(owner=ada, input_payload="boom", agent_key="broken")
        run.refresh_from_db()
        self.assertEqual(run.status, "failed")
"""


@pytest.mark.timeout(300)
def test_the_documented_test_on_postgresql_ends_with_success(tmp_path: Path) -> None:
    host = tmp_path / "mysite"
    host.mkdir()
    (host / "__init__.py").touch()
    (host / "agents.py").write_text(
        "from agents import function_tool\n"
        "from django.contrib.auth.models import User\n\n\n"
        "@function_tool\n"
        "def count_users() -> int:\n"
        '    """Count."""\n'
        "    return User.objects.count()\n"
    )
    documented = re.search(r"```python\n# mysite/tests.py\n(.*?)```", TESTING, re.DOTALL)
    assert documented
    (host / "tests.py").write_text(documented[1])
    (host / "test_more.py").write_text(MORE)
    with servers.new_database() as url:
        project = Project(url, extra={"PYTHONPATH": f"{tmp_path}:{ROOT}"})
        project.manage("test", "mysite.tests", timeout=200)
        project.manage("test", "mysite.test_more", timeout=200)
