"""Checks of how processes notify each other: PostgreSQL, Redis or polling."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, register

from agentic_django.checks.reporting import TAG, error, is_valid, warning
from agentic_django.conf import PREFIX, settings


@register(TAG)
def check_wakeup(**_: Any) -> Iterator[CheckMessage]:
    """E040: the way in which processes notify each other is not available."""
    if not all(map(is_valid, ("WAKEUP", "REDIS_URL", "DATABASE"))):
        return
    name = f"{PREFIX}WAKEUP"
    if settings.WAKEUP == "redis" and not settings.REDIS_URL:
        hint = f"Set it, for example to 'redis://127.0.0.1:6379/0', or set {name} to 'auto'."
        yield error(40, f"{name} is 'redis', but {PREFIX}REDIS_URL is not set.", hint)
    engine = str(django_settings.DATABASES.get(settings.DATABASE, {}).get("ENGINE"))
    can_notify = "postg" in engine and find_spec("psycopg") is not None
    if settings.WAKEUP == "postgres" and not can_notify:
        message = f"{name} is 'postgres', but the database {settings.DATABASE!r} cannot notify."
        hint = f"Set {name} to 'auto'. 'postgres' needs PostgreSQL and psycopg 3."
        yield error(40, message, hint)


@register(TAG)
def check_redis_url(**_: Any) -> Iterator[CheckMessage]:
    """E041, W040: the address of Redis cannot be used, or has no use."""
    if not all(map(is_valid, ("WAKEUP", "REDIS_URL"))) or not settings.REDIS_URL:
        return
    name = f"{PREFIX}REDIS_URL"
    if settings.WAKEUP not in ("auto", "redis"):
        message = f"{name} is set, but {PREFIX}WAKEUP is {settings.WAKEUP!r}."
        yield warning(40, message, f"Remove one of the two. {name} has no other use.")
    elif find_spec("redis") is None:
        yield error(41, f"{name} is set, but redis is not installed.", "Run pip install redis.")
    elif not settings.REDIS_URL.startswith(("redis://", "rediss://", "unix://")):
        message = f"{name} is {settings.REDIS_URL!r}, which is not the URL of a server."
        hint = "Use a URL that begins with redis://, rediss:// or unix://."
        yield error(41, message, hint)
