"""Approvals: the requests of waiting runs to people, and the decisions."""

from __future__ import annotations

from typing import Any

from django.conf import settings as django_settings
from django.db import models
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from agentic_django.models.fields import JSONTextField, new_id
from agentic_django.models.querysets import ApprovalQuerySet
from agentic_django.models.runs import AgentRun

__all__ = ["ToolApproval"]


class ToolApproval(models.Model):
    """A request of a run to a person, and its decision. The run waits until it is decided."""

    class Kind(models.TextChoices):
        """The kind of request."""

        TOOL = "tool", _("Tool call")  # Approve or reject a call of a tool.
        MCP = "mcp", _("Hosted tool call")  # Approve or reject a call by the provider.
        QUESTION = "question", _("Question")  # Answer a question of the host's code.
        INTENT = "intent", _("Interrupted call")  # Resolve a call that may have happened.

    class Decision(models.TextChoices):
        """The decision. The column is empty while the request is open."""

        APPROVED = "approved", _("approved")
        REJECTED = "rejected", _("rejected")
        EXPIRED = "expired", _("expired")
        ANSWERED = "answered", _("answered")
        DONE = "done", _("marked as done")
        REPEAT = "repeat", _("retried")
        FAIL = "fail", _("marked as failed")

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    run = models.ForeignKey(AgentRun, on_delete=models.DB_CASCADE, related_name="approvals")
    generation = models.PositiveIntegerField(_("generation"), default=1)
    key = models.CharField(_("key"), max_length=255)
    kind = models.CharField(_("kind"), max_length=8, choices=Kind, default=Kind.TOOL)
    call_id = models.CharField(_("call"), max_length=255, blank=True, default="")
    tool = models.CharField(_("tool"), max_length=255, blank=True, default="")
    agent = models.CharField(_("agent"), max_length=255, blank=True, default="")
    question = models.TextField(_("question"), blank=True, default="")
    action = models.CharField(_("action"), max_length=80, blank=True, default="")
    arguments = JSONTextField(_("arguments"), null=True)
    options = models.JSONField(_("options"), default=list, blank=True)
    schema = models.JSONField(_("form"), null=True, blank=True)
    requested_at = models.DateTimeField(_("requested"), db_default=Now(), editable=False)
    position = models.PositiveSmallIntegerField(_("position"), default=0, editable=False)
    expires_at = models.DateTimeField(_("expires"), null=True, blank=True, editable=False)
    decision = models.CharField(
        _("decision"), max_length=8, choices=Decision, blank=True, default="", editable=False
    )
    answer = JSONTextField(_("answer"), null=True, editable=False)
    reason = models.TextField(_("reason"), blank=True, default="", editable=False)
    decided_by = models.ForeignKey(
        django_settings.AUTH_USER_MODEL,
        on_delete=models.DB_SET_NULL,
        null=True,
        blank=True,
        related_name="+",
        editable=False,
        verbose_name=_("decided by"),
    )
    decided_at = models.DateTimeField(_("decided"), null=True, editable=False)

    objects = ApprovalQuerySet.as_manager()

    class Meta:
        verbose_name = _("approval")
        verbose_name_plural = _("approvals")
        ordering = ("requested_at", "position")
        constraints = (
            models.UniqueConstraint(
                fields=("run", "generation", "key"), name="agentic_approval_key_unique"
            ),
        )
        indexes = (
            models.Index(
                fields=("expires_at",), condition=Q(decision=""), name="agentic_approval_open"
            ),
        )

    def __str__(self) -> str:
        return self.tool or self.question[:60]

    @property
    def is_open(self) -> bool:
        """Whether the request is undecided."""
        return not self.decision

    @property
    def is_editable(self) -> bool:
        """Whether a person may change the arguments of the call before approving it."""
        return self.kind == self.Kind.TOOL and self.schema is not None

    @property
    def was_edited(self) -> bool:
        """Whether a person approved the call with other arguments than the agent's."""
        edited = self.decision == self.Decision.APPROVED and self.answer is not None
        return edited and self.answer != self.arguments

    @property
    def effective_arguments(self) -> Any:
        """The edited arguments of the call if a person edited them, else the agent's."""
        return self.answer if self.was_edited else self.arguments

    @property
    def rejection_message(self) -> str:
        """The output that the model gets for a call that was not approved."""
        if self.decision == self.Decision.EXPIRED:
            return "This call was rejected, because nobody approved it in time."
        reason = f" Reason: {self.reason}" if self.reason else ""
        return f"This call was rejected by a person.{reason}"
