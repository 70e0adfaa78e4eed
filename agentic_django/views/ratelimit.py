"""Counts the runs that a viewer starts against ``AGENTIC_DJANGO_RATE_LIMIT``."""

from __future__ import annotations

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
    """Count one run against ``AGENTIC_DJANGO_RATE_LIMIT``; raises RateLimited if none is left.

    Windows are fixed, by the database's clock. To be called in the transaction that submits
    the run, so that a run that is refused takes nothing.
    """
    rate = settings.rate
    if rate is None:
        return
    now = _now()
    window = RateWindow(
        tenant=viewer.tenant, principal=viewer.principal, starts_at=now - now % rate.seconds
    )
    if not (_counted(window, rate.count) or _counted(_opened(window), rate.count)):
        raise _limited(window.starts_at + rate.seconds - now)


def _now() -> int:
    """Return the database's time in whole seconds since 1970."""
    connection = connections[database()]
    with connection.cursor() as cursor:
        cursor.execute(_CLOCKS[connection.vendor])
        return int(cursor.fetchone()[0])


def _counted(window: RateWindow, most: int) -> bool:
    """Raise the window's count unless it is full; the guard is in the write."""
    same = RateWindow.objects.using(database()).filter(
        tenant=window.tenant, principal=window.principal, starts_at=window.starts_at
    )
    return bool(same.filter(count__lt=most).update(count=F("count") + 1))


def _opened(window: RateWindow) -> RateWindow:
    """Insert the window, unless another process just did."""
    RateWindow.objects.using(database()).bulk_create([window], ignore_conflicts=True)
    return window


def _limited(seconds: int) -> RateLimited:
    text = _("You sent too many requests. Retry in %(seconds)s s.")
    return RateLimited(text % {"seconds": seconds}, retry_after=seconds)
