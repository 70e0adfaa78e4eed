"""Fixtures for all tests. The servers are real and come from wheels; nothing is skipped."""

from __future__ import annotations

import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections
from django.test import Client
from xdist.scheduler import LoadScopeScheduling

from agentic_django import registry
from agentic_django.concurrency.process_state import process
from agentic_django.engine import retries
from agentic_django.models import AgentRun
from tests.settings import TASK_BACKENDS, database, rq_queues
from tests.support import agents as test_agents
from tests.support import servers
from tests.support.attempts import finish
from tests.support.browser import browser, htmx, open_page, page, problems, screenshot, visit  # noqa: F401
from tests.support.openai_server import OpenAIServer
from tests.support.processes import Project
from tests.support.replaying import Replays, replaying

# No test asks a real model, whatever the developer's shell holds.
for _name in ("OPENAI_API_KEY", "OPENAI_BASE_URL"):
    os.environ.pop(_name, None)


class NetworkError(RuntimeError):
    """A test reached for the network."""


def _refuse_network(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "socket.connect":
        address = arguments[1]
        if isinstance(address, tuple) and not _is_loopback(address[0]):
            raise NetworkError(f"A test connects to {address}.")
    elif event == "socket.getaddrinfo" and not _is_loopback(arguments[0]):
        raise NetworkError(f"A test looks up {arguments[0]}.")


def _is_loopback(host: str | bytes | None) -> bool:
    name = host.decode() if isinstance(host, bytes) else host or "localhost"
    return name in ("localhost", "::1", "::", "0.0.0.0") or name.startswith("127.")


sys.addaudithook(_refuse_network)


POSTGRES = os.environ.get("AGENTIC_TEST_DATABASE") == "postgres"
REPLAY = bool(os.environ.get("AGENTIC_TEST_REPLAY"))
"""Whether attempts are replayed after each thing that they record: see ``support.replaying``."""

SERVERS = {"project", "in_project", "sqlite_project", "postgres", "valkey", "own_valkey"}
"""Fixtures with servers or processes of their own: the tests' own database is nothing to them."""


DATABASE = {"db", "transactional_db"}
"""Fixtures that give a test the tests' own database, as the mark ``django_db`` does."""

TOGETHER = {"test_demo.py"}
"""Files whose tests one worker runs, for what they start is shared."""

RUNS = {"carry", "no_queue", "openai_server", "register", "scripted"}
"""Fixtures with which agents run in the tests' own process."""


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark what starts servers as slow, so that it runs once and not for each database."""
    for item in items:
        if SERVERS & _fixtures(item):
            item.add_marker(pytest.mark.slow)
    left_out = [item for item in items if _is_left_out(item)]
    items[:] = [item for item in items if not _is_left_out(item)]
    config.hook.pytest_deselected(items=left_out)


def _fixtures(item: pytest.Item) -> set[str]:
    return set(getattr(item, "fixturenames", ()))


def _is_left_out(item: pytest.Item) -> bool:
    """On PostgreSQL, what uses no database; replayed, what runs no agent, or counts calls."""
    fixtures = _fixtures(item)
    if REPLAY and (item.get_closest_marker("not_replayed") or not RUNS & fixtures):
        return True
    uses_none = not fixtures & (DATABASE | SERVERS) and not item.get_closest_marker("django_db")
    return POSTGRES and uses_none


# The session: what its processes share


class TogetherScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Spreads tests one by one, but for those of files whose tests share what they start.

    The mark ``xdist_group`` is not heeded under pytest 9.2: pytest-xdist, issue 1386.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.split("::")[0]
        return file if Path(file).name in TOGETHER else nodeid


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Return what gives xdist's workers their tests."""
    return TogetherScheduling(config, log)


def pytest_configure(config: pytest.Config) -> None:
    """Make the directory that this session's processes share, xdist's workers included."""
    if hasattr(config, "workerinput"):
        return
    os.environ[servers.DIRECTORY] = tempfile.mkdtemp(prefix="agentic-tests-")
    # A terminated session ends like an interrupted one, so that no server outlives it.
    signal.signal(signal.SIGTERM, signal.default_int_handler)


def pytest_unconfigure(config: pytest.Config) -> None:
    """Stop what was started for the session."""
    if hasattr(config, "workerinput"):
        return
    shared = Path(os.environ.pop(servers.DIRECTORY))
    servers.stop_shared_postgres(shared)
    shutil.rmtree(shared, ignore_errors=True)


@pytest.fixture(autouse=REPLAY)
def replays() -> Iterator[Replays]:
    """Replay every attempt after each thing it records."""
    with replaying() as replays:
        yield replays


@pytest.fixture(autouse=True)
def no_thread_outlives_its_test() -> Iterator[None]:
    """Join the threads that runs start: pytest forbids them the database afterwards."""
    yield
    process.stop()


# Databases


@pytest.fixture(scope="session")
def django_db_modify_db_settings(
    tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> None:
    """Point the tests at a SQLite file (threads share it) or the session's PostgreSQL."""
    default = connections.settings["default"]
    if POSTGRES:
        default["HOST"] = database(servers.shared_postgres())["HOST"]
        default["TEST"]["NAME"] = "test_agentic"
    else:
        default["TEST"]["NAME"] = str(tmp_path_factory.mktemp("database") / "test.sqlite3")
    # With xdist, each worker gets its own name.
    request.getfixturevalue("django_db_modify_db_settings_parallel_suffix")


@pytest.fixture(scope="session", autouse=True)
def nobody_else_is_in_the_database(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    """End what threads of the process still hold of PostgreSQL, before it drops the database."""
    yield
    with django_db_blocker.unblock():
        if connections["default"].vendor == "postgresql":
            with connections["default"].cursor() as cursor:
                cursor.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid <> pg_backend_pid()"
                )
            connections["default"].close()


@pytest.fixture(scope="session")
def live_server(django_db_setup: None, live_server: Any) -> Any:
    """Django's live server, started on the test database.

    Before it, the database is one in memory, and all requests would share one connection.
    """
    return live_server


@pytest.fixture
def postgres() -> Iterator[servers.Postgres]:
    """A PostgreSQL server of this test's own, to be stopped, crashed and started again."""
    with servers.Postgres() as server:
        yield server


@pytest.fixture(scope="session")
def _valkey() -> Iterator[servers.Valkey]:
    with servers.Valkey() as server:
        yield server


@pytest.fixture
def valkey(_valkey: servers.Valkey) -> servers.Valkey:
    """A running, empty Valkey, which the tests of one process share."""
    _valkey.flush()
    return _valkey


@pytest.fixture
def own_valkey() -> Iterator[servers.Valkey]:
    """A Valkey of this test's own, to be killed and started again."""
    with servers.Valkey() as server:
        yield server


# Projects in processes


@pytest.fixture
def project(tmp_path: Path, valkey: servers.Valkey) -> Iterator[Project]:
    """A project on a fresh PostgreSQL database and Valkey, with RQ as its task backend."""
    with servers.new_database() as url:
        yield Project(url, valkey.port, "rq", directory=tmp_path)


@pytest.fixture
def sqlite_project(tmp_path: Path) -> Project:
    """A project on a fresh SQLite file, with the Immediate task backend."""
    url = servers.new_sqlite_file(tmp_path / "project.sqlite3")
    return Project(url, directory=tmp_path)


@pytest.fixture
def in_project(project: Project, django_db_blocker: Any) -> Iterator[Project]:
    """The ``project``, with this process's ORM and task backend on it too."""
    with django_db_blocker.unblock(), project.in_process():
        yield project


@pytest.fixture
def use_tasks(settings: Any, request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Choose the task backend of this process by a key of ``TASK_BACKENDS``."""

    def use(key: str) -> None:
        if key == "rq":
            settings.RQ_QUEUES = rq_queues(request.getfixturevalue("valkey").port)
        settings.TASKS = {"default": TASK_BACKENDS[key]}

    return use


@pytest.fixture
def no_queue(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody works by itself, and nothing is waited for: see ``tests.support.attempts``."""
    settings.TASKS = {"default": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}}
    monkeypatch.setattr(retries, "backoff", lambda failures: 0.0)


@pytest.fixture
def carry(user: User, no_queue: None) -> Callable[..., AgentRun]:
    """Carry a new run of an agent to its end; keywords are columns of the run."""

    def carry(key: str = "default", given: Any = "Hello", **columns: Any) -> AgentRun:
        columns = {"owner": user, "agent_key": key, "input_payload": given, **columns}
        return finish(AgentRun.objects.create(**columns))

    return carry


# Models


@pytest.fixture
def scripted(settings: Any) -> Iterator[Callable[..., Any]]:
    """Script an agent: ``scripted("default", call_tool("add_group", name="a"), "Done.")``.

    Returns the SDK's ``ScriptedModel``, which records its calls; see ``support.agents.script``.
    """

    def script(key: str, *steps: Any, **agent: Any) -> Any:
        model = test_agents.script(key, *steps, **agent)
        # Assigning makes the registry ask again, for a key it does not know yet.
        settings.AGENTIC_DJANGO_AGENT_REGISTRY = settings.AGENTIC_DJANGO_AGENT_REGISTRY
        return model

    yield script
    test_agents.SCRIPTED.clear()


@pytest.fixture(scope="session")
def _openai_server() -> Iterator[OpenAIServer]:
    # One for the process: the SDK's clients outlive a test and must find it at its address.
    with OpenAIServer() as server:
        yield server


@pytest.fixture
def openai_server(
    _openai_server: OpenAIServer, monkeypatch: pytest.MonkeyPatch
) -> Iterator[OpenAIServer]:
    """A local OpenAI; the SDK's own client finds it (agent key ``http``), subprocesses too."""
    _openai_server.reset()
    monkeypatch.setenv("OPENAI_BASE_URL", _openai_server.base_url)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test")
    yield _openai_server
    unexpected = list(_openai_server.unexpected)
    _openai_server.reset()
    assert not unexpected, unexpected


@pytest.fixture
def register(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Register work of any kind under a key, for one test; another time replaces it."""
    monkeypatch.setattr(registry, "_registry", registry._Registry())

    def register(work: Any, key: str = "work") -> None:
        registry._registry.registered.pop(key, None)
        registry.register(key, work)

    return register


# People


@pytest.fixture
def user(db: None) -> User:
    """Ada, who owns what the tests make."""
    return User.objects.create_user("ada", "ada@example.com", "ada-password")


@pytest.fixture
def other_user(db: None) -> User:
    """Bob, who must not see what is Ada's."""
    return User.objects.create_user("bob", "bob@example.com", "bob-password")


@pytest.fixture
def client(user: User) -> Client:
    """A test client in which Ada is logged in."""
    client = Client()
    client.force_login(user)
    return client


@pytest.fixture
def other_client(other_user: User) -> Client:
    """A test client in which Bob is logged in."""
    client = Client()
    client.force_login(other_user)
    return client


@pytest.fixture
def anonymous_client() -> Client:
    """A test client in which nobody is logged in."""
    return Client()
