"""Sessions, which are conversations, and their items."""

from __future__ import annotations

import re
from typing import Any
from uuid import uuid4

from django.core.validators import RegexValidator
from django.db import models
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from agentic_django import serialization
from agentic_django.exceptions import BadInput
from agentic_django.models.base import OwnedModel, database
from agentic_django.models.choices import Status
from agentic_django.models.fields import JSONTextField, new_id
from agentic_django.models.querysets import SessionQuerySet

__all__ = [
    "SESSION_KEY",
    "AgentSession",
    "AgentSessionItem",
    "check_session_key",
    "new_session_key",
]

SESSION_KEY = r"[A-Za-z0-9_-]{1,255}"
"""The pattern of a session key. The URLs use it too."""


def check_session_key(key: str) -> None:
    """Raise BadInput for a session key that does not match ``SESSION_KEY``."""
    if not re.fullmatch(SESSION_KEY, key):
        text = "A session key is 1 to 255 ASCII letters, digits, '-' or '_'."
        raise BadInput(errors={"session_key": text})


def new_session_key() -> str:
    """Return a session key that no session has."""
    return uuid4().hex


class AgentSession(OwnedModel):
    """A conversation. Its items are the history that runs read."""

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    session_key = models.CharField(
        _("key"), max_length=255, validators=[RegexValidator(rf"^{SESSION_KEY}\Z")]
    )
    agent_key = models.CharField(_("agent"), max_length=100, blank=True)
    title = models.CharField(_("title"), max_length=255, blank=True)
    metadata = models.JSONField(_("metadata"), default=dict, blank=True)
    item_count = models.PositiveIntegerField(_("item count"), default=0, editable=False)
    run_count = models.PositiveIntegerField(_("run count"), default=0, editable=False)
    compacted_items = JSONTextField(null=True, editable=False)
    """The items that runs read instead of the items up to ``compacted_through``."""
    compacted_through = models.PositiveIntegerField(default=0, editable=False)
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

    def set_derived_fields(self) -> None:
        """Check the key, and set the principal. Called before the first save."""
        check_session_key(self.session_key)
        super().set_derived_fields()

    def get_message_history(self, *, include_failed_runs: bool = False) -> list[dict[str, Any]]:
        """Return the conversation as messages in the chat format, oldest first.

        Items of runs that did not complete are included only with ``include_failed_runs``.
        """
        items = self.items.order_by("sequence")
        if not include_failed_runs:
            items = items.filter(Q(run=None) | Q(run__status=Status.COMPLETED))
        return serialization.to_messages(items.values_list("payload", flat=True))

    def get_last_assistant_message(self) -> dict[str, Any] | None:
        """Return the agent's last message that has text, or None."""
        history = reversed(self.get_message_history())
        return next((m for m in history if m["role"] == "assistant" and m["content"]), None)

    def lock(self) -> None:
        """Lock the session until the transaction ends, so that no other process adds runs to it."""
        AgentSession.objects.using(database()).filter(pk=self.pk).update(updated_at=Now())

    def reserve_position(self) -> int:
        """Increase the counter of runs, and return the position of the next run, from 1.

        The conversation is unarchived, because it continues.
        """
        self.run_count = F("run_count") + 1
        self.updated_at = Now()
        self.archived_at = None
        self.save(update_fields=["run_count", "updated_at", "archived_at"])
        return self.run_count


class AgentSessionItem(models.Model):
    """One item of a conversation, in the input format of the Agents SDK."""

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
