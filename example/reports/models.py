"""Reports and the rows of their files."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from uuid import uuid4

from django.conf import settings
from django.core.files import File
from django.db import models, transaction

from agentic_django.models import AgentRun
from agentic_django.services import enqueue_agent_run

AGENT_KEY = "report"


def _address(report: Report, name: str) -> str:
    """Return the path of a file: a generated name in a directory without a URL."""
    return f"reports/{uuid4().hex}.csv"


class Report(models.Model):
    """A file that somebody uploaded, and the run that reports on it."""

    owner = models.ForeignKey(settings.AUTH_USER_MODEL, models.DB_CASCADE, related_name="reports")
    title = models.CharField(max_length=100)
    file = models.FileField(upload_to=_address)
    run = models.OneToOneField(AgentRun, models.DB_SET_NULL, null=True, related_name="+")
    created_at = models.DateTimeField(auto_now_add=True)

    class Meta:
        ordering = ("-created_at",)

    def __str__(self) -> str:
        return self.title

    @classmethod
    def begin(cls, owner: Any, file: File[Any]) -> Report:
        """Keep a file, and hand a run that reports on it to the queue.

        A run without a conversation: reports do not wait for each other.
        """
        report = cls(owner=owner, title=Path(file.name or "").name[:100], file=file)
        with transaction.atomic():
            report.save()
            report.run = AgentRun.objects.create(
                owner=owner,
                agent_key=AGENT_KEY,
                input_payload=f"Report on {report.title}",
                context={"report": report.pk},
            )
            report.save(update_fields=["run"])
            enqueue_agent_run(report.run.pk)
        return report


class Row(models.Model):
    """One row of a file: its cells, and their values or the reason why they are invalid."""

    report = models.ForeignKey(Report, models.DB_CASCADE, related_name="rows")
    line = models.PositiveIntegerField()
    cells = models.JSONField()
    problem = models.CharField(max_length=200, blank=True)
    day = models.DateField(null=True)
    region = models.CharField(max_length=80, blank=True)
    product = models.CharField(max_length=80, blank=True)
    quantity = models.PositiveIntegerField(null=True)
    amount = models.DecimalField(max_digits=14, decimal_places=2, null=True)

    class Meta:
        ordering = ("line",)
        constraints = (
            models.UniqueConstraint(fields=("report", "line"), name="reports_row_line_unique"),
        )

    def __str__(self) -> str:
        return f"{self.report}, line {self.line}"
