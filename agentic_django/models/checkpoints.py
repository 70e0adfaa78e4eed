"""The journal of a run: the recorded results of its calls."""

from __future__ import annotations

from django.db import models
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from agentic_django.models.fields import JSONTextField
from agentic_django.models.runs import AgentRun

__all__ = ["StepCheckpoint"]


class StepCheckpoint(models.Model):
    """The recorded result of a model call, tool call, step or child. The call is never repeated."""

    class Kind(models.TextChoices):
        """The kind of call."""

        MODEL = "model", _("Model call")
        TOOL = "tool", _("Tool call")
        STEP = "step", _("Step")
        CHILD = "child", _("Agent as tool")
        STATE = "state", _("State")

    run = models.ForeignKey(AgentRun, on_delete=models.DB_CASCADE, related_name="checkpoints")
    generation = models.PositiveIntegerField(_("generation"), default=1)
    key = models.CharField(_("key"), max_length=255)
    kind = models.CharField(_("kind"), max_length=8, choices=Kind)
    name = models.CharField(_("name"), max_length=255)
    attempt = models.PositiveIntegerField(_("attempt"))
    fingerprint = models.CharField(max_length=64, blank=True, default="")
    result = JSONTextField(_("result"), null=True)
    error = models.TextField(_("error"), blank=True, default="")
    usage = models.JSONField(_("usage"), default=dict)
    started_at = models.DateTimeField(_("started"), db_default=Now())
    finished_at = models.DateTimeField(_("finished"), null=True)
    duration_seconds = models.FloatField(_("duration"), null=True)

    class Meta:
        verbose_name = _("checkpoint")
        verbose_name_plural = _("checkpoints")
        ordering = ("id",)
        constraints = (
            models.UniqueConstraint(
                fields=("run", "generation", "key"), name="agentic_checkpoint_key_unique"
            ),
        )

    def __str__(self) -> str:
        return f"{self.kind} {self.name}"

    @property
    def is_intent(self) -> bool:
        """Whether the call started but has no recorded result, and must not be repeated."""
        return self.finished_at is None
