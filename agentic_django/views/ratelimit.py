"""Counts the runs and the refused requests of each viewer against their limits.

Runs are counted in the database, so that the limit is exact. Refused requests are counted in
Django's default cache: they change no rows.
"""

from __future__ import annotations

import hashlib
import logging
import time
from typing import Any

from django.core.cache import cache
from django.db import connections
from django.db.models import F
from django.utils.translation import gettext as _

from agentic_django.conf import settings
from agentic_django.exceptions import RateLimited
from agentic_django.models import RateWindow, database
from agentic_django.permissions import Viewer

__all__ = ["check_refused", "consume", "count_refused"]

logger = logging.getLogger("agentic_django")

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
        raise _rate_limited(seconds)


def check_refused(viewer: Viewer) -> None:
    """Raise RateLimited if the viewer's refused requests reach the limit of the current window.

    The limit is ``AGENTIC_DJANGO_REFUSED_RATE_LIMIT``.
    """
    rate = settings.refused_rate
    if rate is None:
        return
    now = int(time.time())
    try:
        count = cache.get(_refused_key(viewer, now, rate.seconds), 0)
    except Exception:  # Each cache has errors of its own. None of them may refuse a request.
        logger.warning("The cache that counts refused requests failed.", exc_info=True)
        return
    if count >= rate.count:
        raise _rate_limited(rate.seconds - now % rate.seconds)


def count_refused(viewer: Viewer) -> None:
    """Count one refused request in the viewer's current window."""
    rate = settings.refused_rate
    if rate is None:
        return
    key = _refused_key(viewer, int(time.time()), rate.seconds)
    try:
        cache.add(key, 0, timeout=rate.seconds)
        cache.incr(key)
    except Exception:  # As above; DummyCache, which stores nothing, also raises.
        logger.warning("The cache that counts refused requests failed.", exc_info=True)


def _refused_key(viewer: Viewer, now: int, seconds: int) -> str:
    name = f"{viewer.tenant}\n{viewer.principal}\n{now - now % seconds}"
    return f"agentic_django.refused.{hashlib.sha256(name.encode()).hexdigest()}"


def _rate_limited(seconds: int) -> RateLimited:
    text = _("You sent too many requests. Retry in %(seconds)s s.") % {"seconds": seconds}
    return RateLimited(text, retry_after=seconds)


def _now() -> int:
    """Return the database's time in whole seconds since 1970."""
    connection = connections[database()]
    with connection.cursor() as cursor:
        cursor.execute(_CLOCKS[connection.vendor])
        return int(cursor.fetchone()[0])
