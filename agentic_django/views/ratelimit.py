"""Counts the runs that a viewer starts against ``AGENTIC_DJANGO_RATE_LIMIT``."""

from __future__ import annotations

from typing import Any

from django.db import connections
from django.db.models import F
from django.utils.translation import gettext as _

from agentic_django.conf import settings
from agentic_django.exceptions import RateLimited
from agentic_django.models import RateWindow, database
from agentic_django.permissions import Viewer

__all__ = ["consume"]

_CLOCKS = {
    "postgresql": "SELECT FLOOR(EXTRACT(EPOCH FROM STATEMENT_TIMESTAMP()))",
    "mysql": "SELECT UNIX_TIMESTAMP()",
    "sqlite": "SELECT strftime('%s', 'now')",
}


def consume(viewer: Viewer) -> None:
    """Count one run in the viewer's current window; raise RateLimited if the window is full.

    Windows are fixed, by the database's clock. Call it in the transaction that submits the run, so
    that a refused run is not counted.
    """
    rate = settings.rate
    if rate is None:
        return
    now = _now()
    starts_at = now - now % rate.seconds
    key: dict[str, Any] = {
        "tenant": viewer.tenant,
        "principal": viewer.principal,
        "starts_at": starts_at,
    }
    windows = RateWindow.objects.using(database())
    free = windows.filter(**key, count__lt=rate.count)
    if free.update(count=F("count") + 1):
        return
    # The window is full or missing. Another process may insert it at the same time.
    windows.bulk_create([RateWindow(**key)], ignore_conflicts=True)
    if not free.update(count=F("count") + 1):
        seconds = starts_at + rate.seconds - now
        text = _("You sent too many requests. Retry in %(seconds)s s.") % {"seconds": seconds}
        raise RateLimited(text, retry_after=seconds)


def _now() -> int:
    """Return the database's time in whole seconds since 1970."""
    connection = connections[database()]
    with connection.cursor() as cursor:
        cursor.execute(_CLOCKS[connection.vendor])
        return int(cursor.fetchone()[0])
