"""Checks of the database that holds the app's tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, register
from django.db import router

from agentic_django.checks.reporting import TAG, error, is_valid, warning
from agentic_django.conf import PREFIX, settings
from agentic_django.models import AgentRun


@register(TAG)
def check_time_zone(**_: Any) -> Iterator[CheckMessage]:
    """E008: times are stored without a time zone."""
    if not django_settings.USE_TZ:
        hint = "Set USE_TZ = True. Leases and time limits are compared with the database's clock."
        yield error(8, "USE_TZ is False.", hint)


@register(TAG)
def check_database_alias(**_: Any) -> Iterator[CheckMessage]:
    """E009, E014: the database does not exist, or Django's routers name another one."""
    if not is_valid("DATABASE"):
        return
    alias = settings.DATABASE
    if alias not in django_settings.DATABASES:
        known = ", ".join(map(repr, django_settings.DATABASES))
        hint = f"Set it to one of {known}."
        yield error(9, f"{PREFIX}DATABASE is {alias!r}, which is not in DATABASES.", hint)
        return
    for other in {router.db_for_read(AgentRun), router.db_for_write(AgentRun)} - {alias}:
        message = (
            f"{PREFIX}DATABASE is {alias!r}, but Django's routers send the models to {other!r}."
        )
        hint = (
            "Add a router to DATABASE_ROUTERS that returns this alias for the app label "
            "'agentic_django', in db_for_read and db_for_write."
        )
        yield error(14, message, hint)


@register(TAG)
def check_sqlite_locking(**_: Any) -> Iterator[CheckMessage]:
    """W005: SQLite begins transactions without the write lock."""
    if not is_valid("DATABASE"):
        return
    alias = settings.DATABASE
    database = django_settings.DATABASES.get(alias, {})
    mode = str(database.get("OPTIONS", {}).get("transaction_mode") or "DEFERRED")
    if str(database.get("ENGINE")).endswith("sqlite3") and mode.upper() == "DEFERRED":
        message = f"The SQLite database {alias!r} begins its transactions without the write lock."
        hint = (
            f"Set DATABASES[{alias!r}]['OPTIONS'] = {{'transaction_mode': 'IMMEDIATE'}}. Otherwise "
            "two concurrent writers may fail with 'database is locked' without waiting."
        )
        yield warning(5, message, hint)
