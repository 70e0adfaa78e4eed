"""Conversations, and the items that an agent remembers of them."""

from __future__ import annotations

import re
from typing import Any

from django.core.validators import RegexValidator
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from agentic_django import serialization
from agentic_django.exceptions import BadInput
from agentic_django.models.base import Owned, database
from agentic_django.models.choices import Status
from agentic_django.models.fields import JSONTextField, new_id
from agentic_django.models.querysets import SessionQuerySet

__all__ = ["SESSION_KEY", "AgentSession", "AgentSessionItem"]

_KEY_RULE = "Use 1 to 255 ASCII letters, digits, '-' and '_'."

SESSION_KEY = r"[A-Za-z0-9_-]{1,255}"
"""What a session's key looks like; also used by the URLs."""


class AgentSession(Owned):
    """A conversation: its items are what an agent remembers of it."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    session_key = models.CharField(
        _("key"), max_length=255, validators=[RegexValidator(rf"^{SESSION_KEY}\Z")]
    )
    agent_key = models.CharField(_("agent"), max_length=100, blank=True)
    title = models.CharField(_("title"), max_length=255, blank=True)
    metadata = models.JSONField(_("metadata"), default=dict, blank=True)
    item_count = models.PositiveIntegerField(_("item count"), default=0, editable=False)
    run_count = models.PositiveIntegerField(_("run count"), default=0, editable=False)
    digest = JSONTextField(null=True, editable=False)
    """What runs see in the place of the items up to ``digested``."""
    digested = models.PositiveIntegerField(default=0, editable=False)
    archived_at = models.DateTimeField(_("archived"), null=True, blank=True)
    created_at = models.DateTimeField(_("created"), db_default=Now(), editable=False)
    updated_at = models.DateTimeField(_("updated"), db_default=Now(), editable=False)

    objects = SessionQuerySet.as_manager()

    class Meta:
        verbose_name = _("session")
        verbose_name_plural = _("sessions")
        constraints = (
            models.UniqueConstraint(
                fields=("tenant", "principal", "session_key"), name="agentic_session_key_unique"
            ),
        )
        indexes = (
            models.Index(
                fields=("tenant", "principal", "-updated_at"), name="agentic_session_list"
            ),
        )

    def __str__(self) -> str:
        return self.title or self.session_key

    def fill(self) -> None:
        """Check the key, and set the owner's name."""
        if not re.fullmatch(SESSION_KEY, self.session_key):
            raise BadInput(errors={"session_key": _KEY_RULE})
        super().fill()

    def get_message_history(self, *, include_failed_runs: bool = False) -> list[dict[str, Any]]:
        """Return the conversation as messages in the chat format, oldest first.

        What runs left that did not complete is included only if asked for.
        """
        items = self.items.order_by("sequence")
        if not include_failed_runs:
            items = items.filter(Q(run=None) | Q(run__status=Status.COMPLETED))
        return serialization.to_messages(items.values_list("payload", flat=True))

    def get_last_assistant_message(self) -> dict[str, Any] | None:
        """Return the last message of the agent that has text, or None."""
        said = [m for m in self.get_message_history() if m["role"] == "assistant" and m["content"]]
        return said[-1] if said else None

    def lock(self) -> None:
        """Keep others from adding runs to the conversation until the transaction ends."""
        AgentSession.objects.using(database()).filter(pk=self.pk).update(updated_at=Now())

    def reserve_position(self) -> int:
        """Raise the counter of runs and return the place of the next one, from 1.

        A conversation that goes on is archived no longer.
        """
        self.run_count = F("run_count") + 1
        self.updated_at = Now()
        self.archived_at = None
        self.save(update_fields=["run_count", "updated_at", "archived_at"])
        return self.run_count


class AgentSessionItem(models.Model):
    """One item of a conversation, in the SDK's input format."""

    session = models.ForeignKey(AgentSession, on_delete=models.DB_CASCADE, related_name="items")
    sequence = models.PositiveIntegerField(_("sequence"))
    payload = JSONTextField(_("payload"))
    run = models.ForeignKey(
        "AgentRun", on_delete=models.DB_SET_NULL, null=True, blank=True, related_name="items"
    )
    created_at = models.DateTimeField(_("created"), db_default=Now(), editable=False)

    class Meta:
        verbose_name = _("session item")
        verbose_name_plural = _("session items")
        ordering = ("sequence",)
        constraints = (
            models.UniqueConstraint(
                fields=("session", "sequence"), name="agentic_item_sequence_unique"
            ),
        )

    def __str__(self) -> str:
        return f"{self.session_id}/{self.sequence}"
