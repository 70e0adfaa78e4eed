"""Deletes old rows in batches, according to the cleanup policy.

Each DELETE repeats the conditions, so it keeps a run that is retried in the meantime, and a session
that is used again. Each batch is a separate transaction. Ages are measured by the database's clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db.models import Exists, OuterRef, Q, QuerySet
from django.db.models.functions import Now

from agentic_django.conf import CleanupPolicy
from agentic_django.models import (
    ACTIVE,
    FINISHED,
    AgentEvent,
    AgentRun,
    AgentSession,
    AgentSessionItem,
    RateWindow,
    database,
)

__all__ = ["Deleted", "delete_old"]

_RATE_WINDOW_DAYS = 2  # Twice the longest period of a rate limit.


@dataclass(frozen=True, slots=True)
class Deleted:
    """The number of deleted rows of each kind, excluding rows deleted by a cascade."""

    events: int = 0
    runs: int = 0
    sessions: int = 0
    rate_windows: int = 0


def delete_old(policy: CleanupPolicy, *, dry_run: bool = False) -> Deleted:
    """Delete the rows that a policy does not keep, and return the number of each kind.

    With ``dry_run``, only count the rows. A run is deleted with its events and its journal. A
    session is deleted with its runs and items. The items that a deleted run wrote stay in their
    session.
    """
    if dry_run:
        return Deleted(**{kind: rows.count() for kind, rows in _old(policy).items()})
    deleted: dict[str, int] = {}
    for kind, rows in _old(policy).items():
        deleted[kind], full = 0, True
        while full:
            batch = list(rows.order_by("pk").values_list("pk", flat=True)[: policy.batch_size])
            # Rows that no longer match are kept.
            deleted[kind] += rows.filter(pk__in=batch).delete()[0] if batch else 0
            full = len(batch) == policy.batch_size
    return Deleted(**deleted)


def _old(policy: CleanupPolicy) -> dict[str, QuerySet[Any]]:
    """Return the rows that a policy does not keep, by kind."""
    events = AgentEvent.objects.using(database()).filter(run__status__in=FINISHED)
    if policy.events_days is None:
        events = events.none()
    else:
        events = events.filter(run__finished_at__lt=_days_ago(policy.events_days))
    windows = RateWindow.objects.using(database())
    now = windows.annotate(now=Now()).values_list("now", flat=True).first()
    if now is None:
        windows = windows.none()
    else:
        windows = windows.filter(starts_at__lt=now.timestamp() - _RATE_WINDOW_DAYS * 86_400)
    return {
        "events": events,
        "runs": _runs(policy),
        "sessions": _sessions(policy),
        "rate_windows": windows,
    }


def _days_ago(days: float) -> Any:
    return Now() - timedelta(days=days)


def _runs(policy: CleanupPolicy) -> QuerySet[AgentRun]:
    """Return the runs that ended long ago, except ancestors and descendants of unfinished runs."""
    rows = AgentRun.objects.using(database())
    if policy.runs_days is None:
        return rows.none()
    relatives = Q(parent=OuterRef("pk")) | Q(root=OuterRef("pk"))
    unfinished = AgentRun.objects.using(database()).filter(relatives, status__in=ACTIVE)
    has_unfinished_ancestor = Q(parent__status__in=ACTIVE) | Q(root__status__in=ACTIVE)
    ended = rows.filter(
        status__in=policy.runs_statuses, finished_at__lt=_days_ago(policy.runs_days)
    )
    return ended.exclude(has_unfinished_ancestor).exclude(Exists(unfinished))


def _sessions(policy: CleanupPolicy) -> QuerySet[AgentSession]:
    rows = AgentSession.objects.using(database())
    if policy.sessions_days is None:
        return rows.none()
    runs = AgentRun.objects.using(database()).filter(session=OuterRef("pk"))
    old = rows.filter(updated_at__lt=_days_ago(policy.sessions_days))
    if not policy.sessions_require_empty:
        return old.exclude(Exists(runs.filter(status__in=ACTIVE)))
    # Runs that this policy deletes are ignored, so that a dry run returns the right number.
    kept = runs.exclude(pk__in=_runs(policy).values("pk"))
    items = AgentSessionItem.objects.using(database()).filter(session=OuterRef("pk"))
    return old.exclude(Exists(kept)).exclude(Exists(items))
