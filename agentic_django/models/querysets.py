"""Querysets of the models. Queries that have a name are methods here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

from django.db import connections, models
from django.db.models.fields.json import KT
from django.db.models.functions import Cast, Concat, Now

from agentic_django import serialization
from agentic_django.models.choices import ACTIVE, FINISHED, Status, Visibility
from agentic_django.permissions import Viewer, owned_by

if TYPE_CHECKING:
    from agentic_django.models.approvals import ToolApproval  # noqa: F401 - in strings
    from agentic_django.models.runs import AgentRun
    from agentic_django.models.sessions import AgentSession  # noqa: F401 - in strings

__all__ = [
    "FRAGMENT_EVENTS",
    "ApprovalQuerySet",
    "OwnedQuerySet",
    "RunQuerySet",
    "SessionQuerySet",
    "lease_expired",
    "skip_locked_rows",
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
"""The types of events that a run's fragment shows if a user may see them."""

FOLDED_EVENTS = ("reasoning", "agent.updated")
"""The types of events that a fragment shows folded, even if they are for debugging."""

FRAGMENT_EVENTS = models.Q(event_type__in=STEP_EVENTS, visibility=Visibility.USER) | models.Q(
    event_type__in=FOLDED_EVENTS, visibility__in=(Visibility.USER, Visibility.DEBUG)
)
"""The condition for events that a fragment shows."""


def lease_expired() -> models.Q:
    """Return the condition for runs whose lease has expired. Only running runs have a lease."""
    return models.Q(lease_ends_at__lt=Now())


def skip_locked_rows[M: models.Model](
    rows: models.QuerySet[M], of: Sequence[str] = ()
) -> models.QuerySet[M]:
    """Lock rows for an update, and leave out rows that another transaction has locked.

    ``of`` names the tables to lock if the query joins several, as in ``select_for_update``. A
    database without this feature locks all rows, or none.
    """
    features = connections[rows.db].features
    return rows.select_for_update(
        skip_locked=features.has_select_for_update_skip_locked,
        no_key=features.has_select_for_no_key_update,
        of=tuple(of) if features.has_select_for_update_of else (),
    )


def joined_rows(rows: models.QuerySet[Any], *columns: Any) -> models.Subquery:
    """Return a subquery that joins columns of a run's rows in any order, each as ``[a,b,c]``."""
    texts = [Cast(column, models.TextField()) for column in columns]
    parts = [part for text in texts for part in (models.Value(","), text)]
    array = Concat(
        models.Value("["), *parts[1:], models.Value("]"), output_field=models.TextField()
    )
    mine = rows.filter(run=models.OuterRef("pk")).order_by().values("run")
    joined = mine.annotate(text=models.StringAgg(array, models.Value(",")))
    return models.Subquery(joined.values("text"))


class OwnedQuerySet[M: models.Model](models.QuerySet[M]):
    """Queries that all models with an owner have."""

    def visible_to(self, viewer: Viewer) -> Self:
        """Return the rows that belong to this viewer. Only their owner sees them."""
        return self.filter(owned_by(viewer))


def usage_sum(name: str) -> models.Sum:
    """Return the sum of one field of the runs' usage, for ``aggregate`` and ``annotate``."""
    return models.Sum(Cast(KT(f"usage__{name}"), models.FloatField()))


class SessionQuerySet(OwnedQuerySet["AgentSession"]):
    """Queries for sessions."""

    def archived(self) -> Self:
        """Return the archived sessions."""
        return self.filter(archived_at__isnull=False)

    def not_archived(self) -> Self:
        """Return the sessions that are not archived."""
        return self.filter(archived_at__isnull=True)

    def matching(self, text: str) -> Self:
        """Return the sessions whose title or whose runs' inputs contain a text."""
        stored = serialization.dumps(text)[1:-1]
        runs: Any = self.model._meta.get_field("runs").related_model
        inputs = runs._base_manager.filter(session=models.OuterRef("pk")).annotate(
            input_text=Cast("input_payload", models.TextField())
        )
        is_in_input = models.Exists(inputs.filter(input_text__icontains=stored))
        return self.filter(models.Q(title__icontains=text) | is_in_input)

    def with_last_status(self) -> Self:
        """Annotate ``last_status``: the status of the conversation's last run."""
        runs: Any = self.model._meta.get_field("runs").related_model
        last = runs._base_manager.filter(session=models.OuterRef("pk")).order_by("-position")
        return self.annotate(last_status=models.Subquery(last.values("status")[:1]))


class RunQuerySet(OwnedQuerySet["AgentRun"]):
    """Queries for runs."""

    def pending(self) -> Self:
        """Return the runs that wait for a worker."""
        return self.filter(status=Status.PENDING)

    def running(self) -> Self:
        """Return the runs that a worker has claimed."""
        return self.filter(status=Status.RUNNING)

    def finished(self) -> Self:
        """Return the runs that ended, with any status."""
        return self.filter(status__in=FINISHED)

    def due(self) -> Self:
        """Return the startable runs that are neither inline nor delayed."""
        return self.startable().filter(is_inline=False, available_at__lte=Now())

    def startable(self) -> Self:
        """Return pending runs that have no unfinished run before them in their conversation."""
        earlier = self._all().filter(
            session=models.OuterRef("session"),
            position__lt=models.OuterRef("position"),
            status__in=ACTIVE,
        )
        return self.pending().filter(~models.Exists(earlier))

    def orphaned(self) -> Self:
        """Return running runs whose lease has expired: their worker died."""
        return self.running().filter(lease_expired())

    def skip_locked(self) -> Self:
        """Return the rows that no other transaction has locked; for an update in a transaction.

        A paused or disconnected process can keep its rows locked for hours.
        """
        free = skip_locked_rows(self.order_by())
        return type(self)(self.model, using=self.db).filter(pk__in=free.values("pk"))

    def by_urgency(self) -> Self:
        """Order by priority, highest first, and then by age, oldest first."""
        return self.order_by("-priority", "available_at", "created_at")

    def with_queue_position(self) -> Self:
        """Annotate ``queue_position`` and ``database_time``.

        ``queue_position`` is the number of pending runs that are older than a pending run, and
        None for other runs. ``database_time`` is the time of the query by the database's clock.
        """
        before = self._all().filter(
            status=Status.PENDING, created_at__lt=models.OuterRef("created_at")
        )
        count = before.order_by().values("status").annotate(n=models.Count("*")).values("n")
        position = models.Case(
            models.When(status=Status.PENDING, then=models.Subquery(count)),
            output_field=models.IntegerField(),
        )
        return self.annotate(queue_position=position, database_time=Now())

    def with_steps(self) -> Self:
        """Annotate events and partial messages, for ``run.steps``, ``texts`` and ``draft``.

        An event is joined as ``[sequence,"type",payload]``, a draft as ``[attempt,id,text]``. They
        are in any order, because SQLite before 3.44 cannot order within an aggregate.
        """
        event: Any = self.model._meta.get_field("events").related_model
        draft: Any = self.model._meta.get_field("drafts").related_model
        quoted_type = Concat(models.Value('"'), "event_type", models.Value('"'))
        shown = event._base_manager.filter(FRAGMENT_EVENTS)
        return self.annotate(
            step_events=joined_rows(shown, "sequence", quoted_type, "payload"),
            draft_texts=joined_rows(draft._base_manager.all(), "attempt", "id", "text"),
        )

    def _all(self) -> models.QuerySet[AgentRun]:
        return self.model._base_manager.all()


class ApprovalQuerySet(models.QuerySet["ToolApproval"]):
    """Queries for approvals."""

    def open(self) -> Self:
        """Return the undecided requests of waiting runs."""
        return self.filter(
            decision="", run__status=Status.WAITING, generation=models.F("run__generation")
        )

    def visible_to(self, viewer: Viewer) -> Self:
        """Return the requests of the viewer's runs. ``permissions.may_decide`` may allow others."""
        return self.filter(owned_by(viewer, "run__"))

    def waiting_calls(self) -> Self:
        """Return the tool calls for which runs wait, decided or not."""
        return self.filter(kind="tool", run__status=Status.WAITING).select_related("run")

    def overdue(self) -> Self:
        """Return the open requests whose time limit has expired."""
        return self.open().filter(expires_at__lt=Now())
