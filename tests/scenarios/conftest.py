"""What the scenarios start: a project with short leases, its servers, its forked attempts."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.scenarios import effects
from tests.support import servers
from tests.support.processes import Project


@pytest.fixture
def scenario(tmp_path: Path, valkey: servers.Valkey) -> Iterator[Project]:
    """A project of the scenarios on a fresh PostgreSQL database and an empty Valkey, with RQ."""
    with servers.new_database() as url:
        yield project(url, valkey.port, tmp_path)


def project(url: str, redis_port: int, directory: Path) -> Project:
    """Return a project of the scenarios, on a database and a Valkey."""
    extra = {effects.FILE: str(directory / "effects")}
    return Project(url, redis_port, "rq", "tests.scenarios.settings", directory, extra)


@pytest.fixture
def in_scenario(
    scenario: Project, django_db_blocker: Any, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Project]:
    """The ``scenario``, with this process's ORM on it, and its file of effects."""
    monkeypatch.setenv(effects.FILE, scenario.extra[effects.FILE])
    with django_db_blocker.unblock(), scenario.in_process():
        yield scenario


@pytest.fixture
def interrupt(scenario: Project) -> Callable[..., list[dict[str, Any]]]:
    """Interrupt agents at each commit, in processes; returns what came of it, by agent."""

    def interrupt(how: str, *names: str) -> list[dict[str, Any]]:
        log = scenario.directory / "reports.json"
        scenario.extra["AGENTIC_TEST_REPORTS"] = str(log)
        process = scenario.process("-m", "tests.scenarios.interruption", how, *names)
        with process:
            status = process.popen.wait(timeout=230)  # type: ignore[union-attr]
        assert status == 0, process.output()
        reports: list[dict[str, Any]] = json.loads(log.read_text())
        return reports

    return interrupt


@pytest.fixture
def load() -> float:
    """How much longer things take while the machine is busy with other work."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))
