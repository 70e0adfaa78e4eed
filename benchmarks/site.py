"""The smallest host project: a fresh SQLite file, tasks executed at once, two agents."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import django
from django.conf import settings
from django.core.management import call_command

__all__ = ["agents", "steps", "up"]


def up() -> Any:
    """Set Django up on an empty database and return a user."""
    os.environ["OPENAI_AGENTS_DISABLE_TRACING"] = "1"
    folder = Path(tempfile.mkdtemp(prefix="agentic-bench-"))
    settings.configure(
        SECRET_KEY="benchmarks only",
        USE_TZ=True,
        ALLOWED_HOSTS=["testserver"],
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
        DATABASES={
            "default": {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": folder / "db.sqlite3",
                "OPTIONS": {
                    "transaction_mode": "IMMEDIATE",
                    "init_command": "PRAGMA journal_mode=wal; PRAGMA synchronous=normal",
                },
            }
        },
        AGENTIC_DJANGO_AGENT_REGISTRY="benchmarks.site.agents",
        AGENTIC_DJANGO_DEFAULT_AGENT_KEY="plain",
        AGENTIC_DJANGO_RATE_LIMIT=None,
        LOGGING_CONFIG=None,
    )
    django.setup()
    call_command("migrate", verbosity=0)
    from django.contrib.auth import get_user_model

    return get_user_model().objects.create_user("bench")


def steps(tool_calls: int) -> list[Any]:
    """Return a model's script: so many turns with one tool call each, then an answer."""
    from agents.testing import assistant_message, function_call

    calls = [[function_call("double", {"n": n}, call_id=f"c{n}")] for n in range(tool_calls)]
    return [*calls, [assistant_message("Done.")]]


def agent(tool_calls: int) -> Any:
    """Return a fresh agent with that script."""
    import agents as sdk
    from agents.testing import ScriptedModel

    @sdk.function_tool
    async def double(n: int) -> int:
        return 2 * n

    return sdk.Agent(name="Bench", model=ScriptedModel(steps(tool_calls)), tools=[double])


def agents() -> dict[str, Any]:
    """The registry of this site."""
    return {"plain": lambda: agent(0), "tools": lambda: agent(3)}


def __getattr__(name: str) -> Any:
    if name != "urlpatterns":
        raise AttributeError(name)
    from django.urls import include, path

    return [path("agents/", include("agentic_django.urls"))]
