"""Runs, their events, and the partial messages of their model calls."""

from __future__ import annotations

from typing import Any

from django.db import models, transaction
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from agentic_django.models.base import OwnedModel, database
from agentic_django.models.choices import ACTIVE, FINISHED, Status, Visibility
from agentic_django.models.fields import JSONTextField, new_id
from agentic_django.models.querysets import RunQuerySet
from agentic_django.models.run_display import RunDisplay
from agentic_django.models.sessions import AgentSession

__all__ = ["HOST_FIELDS", "AgentDraft", "AgentEvent", "AgentRun"]

HOST_FIELDS = ("metadata", "context", "config", "priority")
"""The columns that ``run.save()`` writes of a run that was saved before."""


class AgentRun(RunDisplay, OwnedModel):
    """One piece of work for one agent.

    ``agentic_django.engine`` writes its status; other code calls ``agentic_django.services``.
    """

    Status = Status

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    session = models.ForeignKey(
        AgentSession, on_delete=models.DB_CASCADE, null=True, blank=True, related_name="runs"
    )
    agent_key = models.CharField(_("agent"), max_length=100)
    status = models.CharField(
        _("status"), max_length=16, choices=Status, default=Status.PENDING, editable=False
    )
    input_payload = JSONTextField(_("input"), default=str)
    final_output = JSONTextField(_("output"), null=True, blank=True, editable=False)
    config = models.JSONField(_("run options"), default=dict, blank=True)
    context = models.JSONField(_("context"), default=dict, blank=True)
    metadata = models.JSONField(_("metadata"), default=dict, blank=True)
    usage = models.JSONField(_("usage"), default=dict, blank=True, editable=False)

    # Nothing sets parent, root, idempotency_key and request_hash yet.
    parent = models.ForeignKey(
        "self", on_delete=models.DB_CASCADE, null=True, blank=True, related_name="children"
    )
    root = models.ForeignKey(
        "self", on_delete=models.DB_CASCADE, null=True, blank=True, related_name="descendants"
    )
    position = models.PositiveIntegerField(_("position"), default=0, editable=False)
    priority = models.SmallIntegerField(_("priority"), default=0)
    is_inline = models.BooleanField(default=False, editable=False)
    idempotency_key = models.CharField(max_length=255, blank=True, default="", editable=False)
    request_hash = models.CharField(max_length=64, blank=True, default="", editable=False)

    task_id = models.CharField(_("task"), max_length=64, blank=True, default="", editable=False)
    available_at = models.DateTimeField(_("available at"), db_default=Now(), editable=False)
    enqueued_at = models.DateTimeField(_("enqueued at"), null=True, editable=False)
    attempt = models.PositiveIntegerField(_("attempt"), default=0, editable=False)
    failures = models.PositiveIntegerField(_("failures"), default=0, editable=False)
    generation = models.PositiveIntegerField(_("generation"), default=1, editable=False)
    holder = models.CharField(_("worker"), max_length=255, blank=True, default="", editable=False)
    lease_ends_at = models.DateTimeField(_("lease ends at"), null=True, editable=False)
    active_seconds = models.FloatField(_("active seconds"), default=0, editable=False)
    event_count = models.PositiveIntegerField(_("event count"), default=0, editable=False)
    activity = models.CharField(
        _("activity"), max_length=255, blank=True, default="", editable=False
    )

    watched_until = models.DateTimeField(_("watched until"), null=True, editable=False)

    error_code = models.CharField(
        _("error code"), max_length=64, blank=True, default="", editable=False
    )
    error = models.TextField(_("error"), blank=True, default="", editable=False)
    error_detail = models.TextField(_("error detail"), blank=True, default="", editable=False)

    created_at = models.DateTimeField(_("created"), db_default=Now(), editable=False)
    updated_at = models.DateTimeField(_("updated"), db_default=Now(), editable=False)
    started_at = models.DateTimeField(_("started"), null=True, editable=False)
    finished_at = models.DateTimeField(_("finished"), null=True, editable=False)

    objects = RunQuerySet.as_manager()

    class Meta:
        verbose_name = _("run")
        verbose_name_plural = _("runs")
        constraints = (
            models.UniqueConstraint(
                fields=("session", "position"),
                condition=Q(session__isnull=False),
                name="agentic_run_position_unique",
            ),
            models.UniqueConstraint(
                fields=("session",),
                condition=Q(status__in=("running", "waiting")),
                name="agentic_run_one_per_session",
            ),
            models.UniqueConstraint(
                fields=("tenant", "principal", "idempotency_key"),
                condition=~Q(idempotency_key=""),
                name="agentic_run_idempotency_unique",
            ),
        )
        indexes = (
            models.Index(
                fields=("-priority", "available_at"),
                condition=Q(status="pending"),
                name="agentic_run_due",
            ),
            models.Index(
                fields=("lease_ends_at",), condition=Q(status="running"), name="agentic_run_leases"
            ),
            models.Index(fields=("tenant", "principal", "-created_at"), name="agentic_run_list"),
            models.Index(fields=("finished_at",), name="agentic_run_finished"),
        )

    def __str__(self) -> str:
        return f"{self.agent_key} {str(self.pk)[:8]}"

    def save(self, **kwargs: Any) -> None:
        """Save the row, and give a new run the next position in its conversation.

        Of a run that was saved before, only ``HOST_FIELDS`` are written unless ``update_fields``
        names others. A worker or another process may have changed the other columns since the
        run was read.
        """
        if not self._state.adding and kwargs.get("update_fields") is None:
            kwargs["update_fields"] = HOST_FIELDS
        if not self._state.adding or self.session is None or self.position:
            return super().save(**kwargs)
        with transaction.atomic(using=database()):
            self.position = self.session.reserve_position()
            return super().save(**kwargs)

    def set_derived_fields(self) -> None:
        """Set owner and tenant from the session. Called before the first save."""
        if self.session is not None:
            self.owner_id = self.owner_id or self.session.owner_id
            self.tenant = self.tenant or self.session.tenant
            self.principal = self.principal or self.session.principal
        super().set_derived_fields()

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended. A person may still retry some of these runs."""
        return self.status in FINISHED

    @property
    def is_active(self) -> bool:
        """Whether the run has not ended yet."""
        return self.status in ACTIVE


class AgentEvent(models.Model):
    """An event of a run. The events of a run are numbered from 1 without gaps."""

    run = models.ForeignKey(AgentRun, on_delete=models.DB_CASCADE, related_name="events")
    sequence = models.PositiveIntegerField(_("sequence"))
    event_type = models.CharField(_("type"), max_length=64)
    visibility = models.CharField(_("visibility"), max_length=8, choices=Visibility)
    payload = JSONTextField(_("payload"), default=dict)
    created_at = models.DateTimeField(_("created"), db_default=Now(), editable=False)

    class Meta:
        verbose_name = _("event")
        verbose_name_plural = _("events")
        ordering = ("run", "sequence")
        constraints = (
            models.UniqueConstraint(fields=("run", "sequence"), name="agentic_event_unique"),
        )

    def __str__(self) -> str:
        return f"{self.sequence} {self.event_type}"


class AgentDraft(models.Model):
    """A partial message of a model. It is deleted when the message is complete."""

    run = models.ForeignKey(AgentRun, on_delete=models.DB_CASCADE, related_name="drafts")
    attempt = models.PositiveIntegerField(_("attempt"))
    key = models.CharField(_("key"), max_length=255)
    text = JSONTextField(_("text"), default=str)

    class Meta:
        verbose_name = _("draft")
        verbose_name_plural = _("drafts")
        ordering = ("id",)
        constraints = (models.UniqueConstraint(fields=("run", "key"), name="agentic_draft_unique"),)

    def __str__(self) -> str:
        return f"{self.run_id} {self.key}"
