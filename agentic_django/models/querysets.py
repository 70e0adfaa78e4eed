"""Which rows: the queries that have a name."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

from django.db import connections, models
from django.db.models.fields.json import KT
from django.db.models.functions import Cast, Concat, Now

from agentic_django import serialization
from agentic_django.models.choices import ACTIVE, FINISHED, Status, Visibility

if TYPE_CHECKING:
    from agentic_django.models.approvals import ToolApproval  # noqa: F401 - in strings
    from agentic_django.models.runs import AgentRun
    from agentic_django.models.sessions import AgentSession  # noqa: F401 - in strings
    from agentic_django.permissions import Viewer

__all__ = [
    "FRAGMENT_EVENTS",
    "ApprovalQuerySet",
    "OwnedQuerySet",
    "RunQuerySet",
    "SessionQuerySet",
    "usage_sum",
]

STEP_EVENTS = (
    "message",
    "tool.called",
    "tool.output",
    "step.started",
    "step.completed",
    "step.failed",
    "step.retrying",
    "step.skipped",
    "progress.update",
    "run.retrying",
    "run.cancelled",
)
"""The events from which a run's fragment is made, where a user may see them."""

FOLDED_EVENTS = ("reasoning", "agent.updated")
"""What a fragment shows folded or in passing, though as an event it is for debugging."""

FRAGMENT_EVENTS = models.Q(event_type__in=STEP_EVENTS, visibility=Visibility.USER) | models.Q(
    event_type__in=FOLDED_EVENTS, visibility__in=(Visibility.USER, Visibility.DEBUG)
)
"""Which events a fragment shows."""


class OwnedQuerySet[M: models.Model](models.QuerySet[M]):
    """Scopes that several tables share."""

    def visible_to(self, viewer: Viewer) -> Self:
        """Return the rows that belong to this viewer; nobody else sees them."""
        if not viewer.principal:
            return self.none()
        return self.filter(principal=viewer.principal, tenant=viewer.tenant)


def usage_sum(name: str) -> models.Sum:
    """Return the sum of one figure of the runs' usage, for ``aggregate`` and ``annotate``."""
    return models.Sum(Cast(KT(f"usage__{name}"), models.FloatField()))


class SessionQuerySet(OwnedQuerySet["AgentSession"]):
    """Which conversations."""

    def archived(self) -> Self:
        """Conversations that were put aside."""
        return self.filter(archived_at__isnull=False)

    def current(self) -> Self:
        """Conversations that were not put aside."""
        return self.filter(archived_at__isnull=True)

    def matching(self, text: str) -> Self:
        """Conversations whose title, or something that the person said there, holds a text."""
        stored = serialization.dumps(text)[1:-1]
        runs: Any = self.model._meta.get_field("runs").related_model
        given = Cast("input_payload", models.TextField())
        said = runs._base_manager.filter(session=models.OuterRef("pk")).annotate(given=given)
        found = models.Exists(said.filter(given__icontains=stored))
        return self.filter(models.Q(title__icontains=text) | found)

    def with_last_status(self) -> Self:
        """Annotate ``last_status``: where the last run of the conversation stands."""
        runs: Any = self.model._meta.get_field("runs").related_model
        last = runs._base_manager.filter(session=models.OuterRef("pk")).order_by("-position")
        return self.annotate(last_status=models.Subquery(last.values("status")[:1]))


class RunQuerySet(OwnedQuerySet["AgentRun"]):
    """Which runs."""

    def pending(self) -> Self:
        """Runs that wait for a worker."""
        return self.filter(status=Status.PENDING)

    def running(self) -> Self:
        """Runs that an attempt holds."""
        return self.filter(status=Status.RUNNING)

    def finished(self) -> Self:
        """Runs that ended, whichever way."""
        return self.filter(status__in=FINISHED)

    def due(self) -> Self:
        """Pending runs whose time has come and whose conversation is free."""
        return self.next_in_line().filter(is_inline=False, available_at__lte=Now())

    def next_in_line(self) -> Self:
        """Pending runs whose conversation is free."""
        return self.pending().filter(~models.Exists(self._earlier()))

    def lost(self) -> Self:
        """Running runs whose lease has ended: their holder is gone."""
        return self.running().filter(lease_ends_at__lt=Now())

    def unlocked(self) -> Self:
        """Those that no transaction is writing now; for a change within a transaction.

        A process can be paused, or cut off, in the midst of one, and hold its rows for hours.
        """
        features = connections[self.db].features
        free = self.order_by().select_for_update(
            skip_locked=features.has_select_for_update_skip_locked,
            no_key=features.has_select_for_no_key_update,
        )
        return type(self)(self.model, using=self.db).filter(pk__in=free.values("pk"))

    def in_turn(self) -> Self:
        """The most urgent first, then the oldest."""
        return self.order_by("-priority", "available_at", "created_at")

    def with_place(self) -> Self:
        """Annotate ``place``: how many pending runs stand before this one (pending runs only).

        And ``seen_at``: the database's clock, by which a run's times are told.
        """
        before = self._all().filter(
            status=Status.PENDING, created_at__lt=models.OuterRef("created_at")
        )
        count = before.order_by().values("status").annotate(n=models.Count("*")).values("n")
        place = models.Case(
            models.When(status=Status.PENDING, then=models.Subquery(count)),
            output_field=models.IntegerField(),
        )
        return self.annotate(place=place, seen_at=Now())

    def with_steps(self) -> Self:
        """Annotate what was said and called so far, for ``run.steps``, ``texts`` and ``draft``.

        Each is joined as ``[sequence,"type",payload]``: SQLite before 3.44 cannot order in it.
        """
        event = Concat(
            models.Value("["),
            Cast("sequence", models.TextField()),
            models.Value(',"'),
            "event_type",
            models.Value('",'),
            Cast("payload", models.TextField()),
            models.Value("]"),
            output_field=models.TextField(),
        )
        texts = models.StringAgg(event, models.Value(","))
        joined = self._step_events().order_by().values("run").annotate(text=texts).values("text")
        return self.annotate(
            step_events=models.Subquery(joined), draft_texts=models.Subquery(self._drafts())
        )

    def _drafts(self) -> models.QuerySet[Any]:
        """Return, for an outer run, its drafts joined as ``[attempt,id,text]``."""
        draft = Concat(
            models.Value("["),
            Cast("attempt", models.TextField()),
            models.Value(","),
            Cast("id", models.TextField()),
            models.Value(","),
            Cast("text", models.TextField()),
            models.Value("]"),
            output_field=models.TextField(),
        )
        drafts: Any = self.model._meta.get_field("drafts").related_model
        mine = drafts._base_manager.filter(run=models.OuterRef("pk"))
        texts = models.StringAgg(draft, models.Value(","))
        return mine.order_by().values("run").annotate(text=texts).values("text")  # type: ignore[no-any-return]

    def _step_events(self) -> models.QuerySet[Any]:
        event: Any = self.model._meta.get_field("events").related_model
        return event._base_manager.filter(FRAGMENT_EVENTS, run=models.OuterRef("pk"))  # type: ignore[no-any-return]

    def _earlier(self) -> models.QuerySet[AgentRun]:
        """Return, for an outer run, the unfinished runs before it in its conversation."""
        return self._all().filter(
            session=models.OuterRef("session"),
            position__lt=models.OuterRef("position"),
            status__in=ACTIVE,
        )

    def _all(self) -> models.QuerySet[AgentRun]:
        return self.model._base_manager.all()


class ApprovalQuerySet(models.QuerySet["ToolApproval"]):
    """Which approvals."""

    def open(self) -> Self:
        """What a waiting run asks and nobody has decided."""
        return self.filter(
            decision="", run__status=Status.WAITING, generation=models.F("run__generation")
        )

    def visible_to(self, viewer: Viewer) -> Self:
        """What runs of this viewer ask; who else may decide is ``approvals.may_decide``."""
        if not viewer.principal:
            return self.none()
        return self.filter(run__principal=viewer.principal, run__tenant=viewer.tenant)

    def waiting_calls(self) -> Self:
        """Calls of tools with which runs wait."""
        return self.filter(kind="tool", run__status=Status.WAITING).select_related("run")

    def overdue(self) -> Self:
        """What is open, though its time is over."""
        return self.open().filter(expires_at__lt=Now())
