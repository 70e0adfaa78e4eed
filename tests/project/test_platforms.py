"""The app on a platform without fork and without Unix's other names, such as Windows."""

from __future__ import annotations

from tests.support.processes import Project

WITHOUT_UNIX = """
import importlib, os, pkgutil, signal, sys

for name in ("fcntl", "grp", "pwd", "resource", "termios", "uvloop"):
    sys.modules[name] = None  # An import of it fails.
for module, names in {
    os: ("fork", "forkpty", "register_at_fork", "setpgid", "getpgid", "WNOHANG", "getuid"),
    signal: ("pthread_sigmask", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGKILL", "SIGALRM", "setitimer"),
}.items():
    for name in names:
        delattr(module, name)
"""

IMPORTS = """
import agentic_django
for module in pkgutil.walk_packages(agentic_django.__path__, "agentic_django."):
    if not module.name.startswith("agentic_django.worker.sources.rq"):
        importlib.import_module(module.name)
"""

RUN = """
from django.contrib.auth.models import User
from django.core.management import CommandError, call_command
from agentic_django.models import AgentRun
from agentic_django.services import submit_agent_run

call_command("check")
ada = User.objects.create_user("ada")
run = submit_agent_run(owner=ada, input_payload="staff", agent_key="sync_tool")
print(AgentRun.objects.get(pk=run.pk).final_output)
try:
    call_command("agentic_django_worker", "--source", "database")
except CommandError as error:
    print(error)
"""


def _without_unix(project: Project, code: str) -> str:
    lines = f"{WITHOUT_UNIX}\nimport django\ndjango.setup()\n{code}"
    return project.script(lines)


def test_every_module_can_be_imported(sqlite_project: Project) -> None:
    _without_unix(sqlite_project, IMPORTS)


def test_a_run_is_executed_and_the_worker_says_that_it_needs_fork(
    sqlite_project: Project,
) -> None:
    output = _without_unix(sqlite_project, RUN)
    assert "Done: 1 groups" in output
    assert "needs fork()" in output
