"""Queries for live updates: snapshots of runs, and their new events.

Each query reads all runs of a process at once, so its cost does not depend on the number of
readers.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from django.db import models
from django.db.models import Max, Q
from django.db.models.functions import Now

from agentic_django.models import ACTIVE, FINISHED, AgentEvent, AgentRun, database, run_display
from agentic_django.models.querysets import lease_expired
from agentic_django.permissions import Viewer

__all__ = [
    "MAX_EVENTS",
    "NO_EVENTS",
    "EventBatch",
    "RunSnapshot",
    "StreamScope",
    "find_run_ids",
    "last_sequences_before",
    "read_event_batches",
    "read_snapshots",
]

MAX_EVENTS = 500
"""The number of events of one run that one query reads."""

_OVERLAP = timedelta(seconds=10)
"""Longer than any transaction. A stream that resumes at a time starts to read this much earlier."""


@dataclass(slots=True)
class RunSnapshot:
    """A run and its drafts, read in one query."""

    pk: UUID
    session: UUID | None
    owner: tuple[str, str]
    """The owner's principal, and the tenant."""
    status: str
    attempt: int
    event_count: int
    queue_position: int | None
    is_orphaned: bool
    read_at: datetime
    created_at: datetime
    drafts: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    """Attempt, row id and text of each draft of the last attempt, by key."""

    @property
    def stamp(self) -> str:
        """See ``AgentRun.stamp``."""
        return run_display.state_stamp(
            self.status,
            self.attempt,
            self.event_count,
            self.queue_position,
            late=self.is_orphaned,
        )

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended."""
        return self.status in FINISHED

    @property
    def text(self) -> str:
        """The text of the incomplete messages."""
        return run_display.latest_draft(self.drafts.values())


def read_snapshots(ids: Collection[UUID]) -> dict[UUID, RunSnapshot]:
    """Return snapshots of runs by id, in one query. Deleted runs are missing."""
    if not ids:
        return {}
    is_orphaned = models.Case(
        models.When(lease_expired(), status=AgentRun.Status.RUNNING, then=True),
        default=False,
        output_field=models.BooleanField(),
    )
    rows = AgentRun.objects.using(database()).filter(pk__in=ids).with_queue_position()
    columns = ("pk", "session_id", "principal", "tenant", "status", "attempt", "event_count")
    draft = ("drafts__key", "drafts__attempt", "drafts__pk", "drafts__text")
    found: dict[UUID, RunSnapshot] = {}
    values = rows.values_list(
        *columns, "queue_position", is_orphaned, "database_time", "created_at", *draft
    )
    for row in values.order_by("pk"):
        pk, session, principal, tenant, *rest = row[:11]
        snapshot = found.get(pk) or RunSnapshot(pk, session, (principal, tenant), *rest)
        found[pk] = snapshot
        if row[11] is not None and not snapshot.is_finished:
            snapshot.drafts[row[11]] = row[12:]
    for snapshot in found.values():
        last = max((attempt for attempt, _, _ in snapshot.drafts.values()), default=0)
        by_id = sorted(snapshot.drafts.items(), key=lambda item: item[1][1])
        snapshot.drafts = {key: draft for key, draft in by_id if draft[0] == last}
    return found


@dataclass(frozen=True, slots=True)
class StreamScope:
    """All runs of a viewer, or those in one conversation."""

    viewer: Viewer
    session: UUID | None = None

    def covers(self, snapshot: RunSnapshot) -> bool:
        """Whether a run is in the scope."""
        is_own = snapshot.owner == (self.viewer.principal, self.viewer.tenant)
        return is_own and self.session in (None, snapshot.session)


def find_run_ids(
    scopes: Collection[StreamScope],
    since: datetime | None = None,
    ids: Collection[UUID] | None = None,
) -> list[UUID]:
    """Return the ids of runs that may be in one of the scopes: unfinished, or changed recently.

    The query ignores tenants, so test each run with ``StreamScope.covers``. ``since`` is the time
    from which a change counts as recent. With ``ids``, search only those, in any status.
    """
    principals = {s.viewer.principal for s in scopes if s.session is None}
    sessions = {s.session for s in scopes if s.session is not None}
    rows = AgentRun.objects.using(database()).filter(
        Q(principal__in=principals) | Q(session__in=sessions)
    )
    if ids is not None:
        rows = rows.filter(pk__in=ids)
    else:
        begin = (Now() - _OVERLAP) if since is None else models.Value(since - _OVERLAP)
        rows = rows.filter(Q(status__in=ACTIVE) | Q(updated_at__gte=begin))
    return list(rows.order_by().values_list("pk", flat=True))


def last_sequences_before(ids: Collection[UUID], time: datetime) -> dict[UUID, int]:
    """Return a lower bound of each run's last event number at a time."""
    rows = AgentEvent.objects.using(database()).filter(run__in=ids, created_at__lt=time - _OVERLAP)
    return dict(rows.order_by().values_list("run").annotate(last=Max("sequence")))


@dataclass(slots=True)
class EventBatch:
    """The events of a run up to the number ``through``, except deleted events."""

    through: int = 0
    events: list[AgentEvent] = field(default_factory=list)


NO_EVENTS = EventBatch()


def read_event_batches(cursors: Mapping[UUID, int]) -> dict[UUID, EventBatch]:
    """Return the next events of each run after a number, in one query."""
    wanted = Q()
    for pk, sequence in cursors.items():
        wanted |= Q(run=pk, sequence__gt=sequence, sequence__lte=sequence + MAX_EVENTS)
    if not wanted:
        return {}
    found = {pk: EventBatch(sequence + MAX_EVENTS) for pk, sequence in cursors.items()}
    rows = AgentEvent.objects.using(database()).filter(wanted).order_by("run", "sequence")
    for row in rows:
        found[row.run_id].events.append(row)
    return found
