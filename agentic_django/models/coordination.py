"""Tables for coordination between processes: concurrency slots, sweeps and rate limits."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now

from agentic_django.models.runs import AgentRun

__all__ = ["RateWindow", "RunSlot", "SweepMark"]


class RunSlot(models.Model):
    """A slot of ``AGENTIC_DJANGO_CONCURRENCY_LIMIT`` that a running run has acquired."""

    key = models.CharField(
        max_length=100, default="*", help_text="The agent that the slot belongs to, or * for all."
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
    """The time of the last sweep, so that processes do not sweep at the same time."""

    swept_at = models.DateTimeField(db_default=Now())

    def __str__(self) -> str:
        return str(self.swept_at)


class RateWindow(models.Model):
    """The number of runs that a user submitted in one window of the rate limit."""

    tenant = models.CharField(max_length=64, blank=True, default="")
    principal = models.CharField(max_length=80)
    starts_at = models.BigIntegerField(help_text="Unix time at which the window starts.")
    count = models.PositiveIntegerField(default=0)

    class Meta:
        constraints = (
            models.UniqueConstraint(
                fields=("tenant", "principal", "starts_at"), name="agentic_rate_window_unique"
            ),
        )

    def __str__(self) -> str:
        return f"{self.principal} {self.starts_at}"
