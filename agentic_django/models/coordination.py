"""Tables that only the app itself reads: places, sweeps, rates."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now

from agentic_django.models.runs import AgentRun

__all__ = ["RateWindow", "RunSlot", "SweepMark"]


class RunSlot(models.Model):
    """One of the places that ``AGENTIC_DJANGO_CONCURRENCY_LIMIT`` allows, while a run holds it."""

    key = models.CharField(
        max_length=100, default="*", help_text="The agent whose places these are, or * for all."
    )
    number = models.PositiveIntegerField()
    run = models.ForeignKey(AgentRun, on_delete=models.DB_CASCADE, related_name="slots")

    class Meta:
        constraints = (
            models.UniqueConstraint(fields=("key", "number"), name="agentic_slot_unique"),
            models.UniqueConstraint(fields=("run", "key"), name="agentic_slot_once"),
        )

    def __str__(self) -> str:
        return f"{self.key} {self.number}"


class SweepMark(models.Model):
    """When lost runs were last looked for, so that many processes do not all do it."""

    swept_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return str(self.swept_at)


class RateWindow(models.Model):
    """How many runs somebody started in one window of the rate limit."""

    tenant = models.CharField(max_length=64, blank=True, default="")
    principal = models.CharField(max_length=80)
    starts_at = models.BigIntegerField(help_text="Seconds since 1970 at which the window began.")
    count = models.PositiveIntegerField(default=0)

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=("tenant", "principal", "starts_at"), name="agentic_rate_window_unique"
            ),
        )

    def __str__(self) -> str:
        return f"{self.principal} {self.starts_at}"
