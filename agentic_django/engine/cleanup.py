"""Retention, in batches: with what a person deletes, the only deleter.

Every statement repeats its conditions in the DELETE itself, so a run that is retried or a
conversation that goes on meanwhile stays. Each batch is a transaction of its own. "Old" is by
the database's clock.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from django.db import transaction
from django.db.models import Exists, OuterRef, Q, QuerySet
from django.db.models.functions import Now

from agentic_django.conf import CleanupPolicy
from agentic_django.engine import lifecycle
from agentic_django.exceptions import Conflict
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

__all__ = ["Deleted", "delete_old", "delete_session"]

_RATE_WINDOW_DAYS = 2  # Twice the longest period of a rate limit.


@dataclass(frozen=True, slots=True)
class Deleted:
    """How many rows of each kind; what the database deleted with them is not counted."""

    events: int = 0
    runs: int = 0
    sessions: int = 0
    rate_windows: int = 0


def delete_old(policy: CleanupPolicy, *, dry_run: bool = False) -> Deleted:
    """Delete what a policy does not keep, and say how much; a dry run only counts.

    A run goes with its events and its journal, a session with its runs and items. The items
    that a deleted run wrote stay in their conversation.
    """
    if dry_run:
        return Deleted(**{kind: rows.count() for kind, rows in _old(policy).items()})
    size = policy.batch_size
    return Deleted(**{kind: _delete(rows, size) for kind, rows in _old(policy).items()})


def delete_session(session: AgentSession, *, by: str = "") -> None:
    """Delete a conversation with its items and runs; what is under way there is stopped first.

    ``by`` is the name of the person who wants that.
    """
    with transaction.atomic(using=database()):
        runs = AgentRun.objects.using(database()).filter(session=session, status__in=ACTIVE)
        # Workers lock a run first and its conversation then, and so do we; the last goes first,
        # so that none starts in between.
        for run in list(runs.select_for_update().order_by("-position")):
            with suppress(Conflict):  # It has just ended by itself.
                lifecycle.cancel(run, by)
        AgentSession.objects.using(database()).filter(pk=session.pk).delete()


def _old(policy: CleanupPolicy) -> dict[str, QuerySet[Any]]:
    return {
        "events": _events(policy.events_days),
        "runs": _runs(policy),
        "sessions": _sessions(policy),
        "rate_windows": _rate_windows(),
    }


def _delete(rows: QuerySet[Any], size: int) -> int:
    """Delete rows batch by batch; those that no longer qualify by then stay."""
    deleted, full = 0, True
    while full:
        batch = list(rows.order_by("pk").values_list("pk", flat=True)[:size])
        deleted += rows.filter(pk__in=batch).delete()[0] if batch else 0
        full = len(batch) == size
    return deleted


def _before(days: float) -> Any:
    return Now() - timedelta(days=days)


def _events(days: float | None) -> QuerySet[AgentEvent]:
    rows = AgentEvent.objects.using(database())
    if days is None:
        return rows.none()
    return rows.filter(run__status__in=FINISHED, run__finished_at__lt=_before(days))


def _runs(policy: CleanupPolicy) -> QuerySet[AgentRun]:
    """Runs that ended long ago, of families in which nobody works any more."""
    rows = AgentRun.objects.using(database())
    if policy.runs_days is None:
        return rows.none()
    relatives = Q(parent=OuterRef("pk")) | Q(root=OuterRef("pk"))
    below = AgentRun.objects.filter(relatives, status__in=ACTIVE)
    above = Q(parent__status__in=ACTIVE) | Q(root__status__in=ACTIVE)
    ended = rows.filter(status__in=policy.runs_statuses, finished_at__lt=_before(policy.runs_days))
    return ended.exclude(above).exclude(Exists(below))


def _sessions(policy: CleanupPolicy) -> QuerySet[AgentSession]:
    rows = AgentSession.objects.using(database())
    if policy.sessions_days is None:
        return rows.none()
    runs = AgentRun.objects.filter(session=OuterRef("pk"))
    old = rows.filter(updated_at__lt=_before(policy.sessions_days))
    if not policy.sessions_require_empty:
        return old.exclude(Exists(runs.filter(status__in=ACTIVE)))
    # Runs that are deleted first do not count, so that a dry run foretells the right number.
    kept = runs.exclude(pk__in=_runs(policy).values("pk"))
    items = AgentSessionItem.objects.filter(session=OuterRef("pk"))
    return old.exclude(Exists(kept)).exclude(Exists(items))


def _rate_windows() -> QuerySet[RateWindow]:
    rows = RateWindow.objects.using(database())
    now = rows.annotate(now=Now()).values_list("now", flat=True).first()
    if now is None:
        return rows.none()
    return rows.filter(starts_at__lt=now.timestamp() - _RATE_WINDOW_DAYS * 86_400)
