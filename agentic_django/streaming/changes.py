"""What is new of runs: how they stand, and what happened to them, in few statements for all."""

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
    "events_after",
    "find_runs",
    "positions",
    "read_snapshots",
]

MAX_EVENTS = 500
"""So many events of one run are read at once; the rest follows."""

_OVERLAP = timedelta(seconds=10)
"""How much longer than a transaction takes; what is resumed by time begins so much earlier."""


@dataclass(slots=True)
class RunSnapshot:
    """A run and its drafts, as one statement read them."""

    pk: UUID
    session: UUID | None
    owner: tuple[str, str]
    """Principal and tenant."""
    status: str
    attempt: int
    count: int
    queue_position: int | None
    is_late: bool
    read_at: datetime
    created_at: datetime
    drafts: dict[str, tuple[int, int, str]] = field(default_factory=dict)
    """Key to attempt, row and text; the last attempt's only."""

    @property
    def stamp(self) -> str:
        """See ``AgentRun.stamp``."""
        return run_display.state_stamp(
            self.status, self.attempt, self.count, self.queue_position, late=self.is_late
        )

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended."""
        return self.status in FINISHED

    @property
    def text(self) -> str:
        """What is said so far of messages that are not complete."""
        return run_display.latest_draft(self.drafts.values())


def read_snapshots(ids: Collection[UUID]) -> dict[UUID, RunSnapshot]:
    """Return how runs stand, in one statement; those that are gone are missing."""
    if not ids:
        return {}
    late = models.Case(
        models.When(lease_expired(), status=AgentRun.Status.RUNNING, then=True),
        default=False,
        output_field=models.BooleanField(),
    )
    rows = AgentRun.objects.using(database()).filter(pk__in=ids).with_queue_position()
    columns = ("pk", "session_id", "principal", "tenant", "status", "attempt", "event_count")
    draft = ("drafts__key", "drafts__attempt", "drafts__pk", "drafts__text")
    found: dict[UUID, RunSnapshot] = {}
    told = rows.values_list(*columns, "queue_position", late, "database_time", "created_at", *draft)
    for row in told.order_by("pk"):
        pk, session, principal, tenant, *rest = row[:11]
        state = found.get(pk) or RunSnapshot(pk, session, (principal, tenant), *rest)
        found[pk] = state
        if row[11] is not None and not state.is_finished:
            state.drafts[row[11]] = row[12:]
    for state in found.values():
        _keep_last_attempt(state)
    return found


def _keep_last_attempt(state: RunSnapshot) -> None:
    last = max((attempt for attempt, _, _ in state.drafts.values()), default=0)
    kept = sorted(state.drafts.items(), key=lambda item: item[1][1])
    state.drafts = {key: draft for key, draft in kept if draft[0] == last}


@dataclass(frozen=True, slots=True)
class StreamScope:
    """Whose runs: all of a viewer, or those in one conversation."""

    viewer: Viewer
    session: UUID | None = None

    def covers(self, state: RunSnapshot) -> bool:
        """Whether a run is one of them."""
        mine = state.owner == (self.viewer.principal, self.viewer.tenant)
        return mine and self.session in (None, state.session)


def find_runs(
    scopes: Collection[StreamScope],
    since: datetime | None = None,
    ids: Collection[UUID] | None = None,
) -> list[UUID]:
    """Return runs that are in one of the scopes, or nearly: unfinished, or changed lately.

    With ``ids``, only among those.
    """
    everything = {s.viewer.principal for s in scopes if s.session is None}
    sessions = {s.session for s in scopes if s.session is not None}
    rows = AgentRun.objects.using(database()).filter(
        Q(principal__in=everything) | Q(session__in=sessions)
    )
    if ids is not None:
        rows = rows.filter(pk__in=ids)
    else:
        begin = (Now() - _OVERLAP) if since is None else models.Value(since - _OVERLAP)
        rows = rows.filter(Q(status__in=ACTIVE) | Q(updated_at__gte=begin))
    return list(rows.order_by().values_list("pk", flat=True))


def positions(ids: Collection[UUID], since: datetime) -> dict[UUID, int]:
    """Return the numbers of the last events that runs had for sure at some time."""
    rows = AgentEvent.objects.using(database()).filter(run__in=ids, created_at__lt=since - _OVERLAP)
    return dict(rows.order_by().values_list("run").annotate(last=Max("sequence")))


@dataclass(slots=True)
class EventBatch:
    """The events of a run up to a number; some of them may have been deleted long ago."""

    upto: int = 0
    events: list[AgentEvent] = field(default_factory=list)


NO_EVENTS = EventBatch()


def events_after(cursors: Mapping[UUID, int]) -> dict[UUID, EventBatch]:
    """Return the next events of runs behind a number each, in one statement."""
    behind = Q()
    for pk, sequence in cursors.items():
        behind |= Q(run=pk, sequence__gt=sequence, sequence__lte=sequence + MAX_EVENTS)
    if not behind:
        return {}
    found = {pk: EventBatch(sequence + MAX_EVENTS) for pk, sequence in cursors.items()}
    rows = AgentEvent.objects.using(database()).filter(behind).order_by("run", "sequence")
    for row in rows:
        found[row.run_id].events.append(row)
    return found
