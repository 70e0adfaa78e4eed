"""Tables, constraints, query scopes and predicates. Transitions are in ``runs``."""

from __future__ import annotations

import re
import threading
from functools import cached_property
from typing import TYPE_CHECKING, Any

from django.conf import settings as django_settings
from django.core.validators import RegexValidator
from django.db import models, transaction
from django.db.models import F, Q
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from agentic_django import serialization
from agentic_django.conf import settings
from agentic_django.exceptions import BadInput
from agentic_django.fields import JSONTextField, OwnerKey, new_id
from agentic_django.querysets import ApprovalScope, RunScope, SessionScope
from agentic_django.shown import Shown
from agentic_django.states import ACTIVE, FINISHED, Status, Visibility
from agentic_django.viewer import principal_of

if TYPE_CHECKING:
    pass

__all__ = [
    "ACTIVE",
    "FINISHED",
    "HOST_FIELDS",
    "SESSION_KEY",
    "AgentDraft",
    "AgentEvent",
    "AgentRun",
    "AgentSession",
    "AgentSessionItem",
    "RunSlot",
    "StepCheckpoint",
    "SweepMark",
    "ToolApproval",
    "Visibility",
    "database",
]

_KEY_RULE = "Use 1 to 255 ASCII letters, digits, '-' and '_'."

SESSION_KEY = r"[A-Za-z0-9_-]{1,255}"
"""What a session's key looks like; also used by the URLs."""


HOST_FIELDS = ("metadata", "context", "config", "priority")
"""What ``run.save()`` writes of a run that is there already."""


def database() -> str:
    """Return the alias of the database that holds all rows of the app."""
    return settings.DATABASE


class Owned(models.Model):
    """A row that belongs to somebody."""

    owner = OwnerKey(
        django_settings.AUTH_USER_MODEL,
        on_delete=models.DB_CASCADE,
        null=True,
        blank=True,
        related_name="+",
        verbose_name=_("owner"),
    )
    tenant = models.CharField(_("tenant"), max_length=64, blank=True, default="")
    principal = models.CharField(_("principal"), max_length=80, blank=True, editable=False)

    class Meta:
        abstract = True

    def save(self, **kwargs: Any) -> None:
        """Save the row, filled in if it is new."""
        if self._state.adding:
            self.fill()
        super().save(**kwargs)

    def fill(self) -> None:
        """Set what follows from the other columns, before the first save."""
        self.principal = self.principal or principal_of(self.owner)


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

    objects = SessionScope.as_manager()

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


class AgentRun(Shown, Owned):
    """One piece of work by one agent."""

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

    objects = RunScope.as_manager()

    began = 0.0
    """When this process claimed it, by the process's monotonic clock; not stored."""

    is_lost = False
    """Whether this process has noticed that its attempt no longer holds it; not stored."""

    has_drafts = False
    """Whether this process has written drafts of it; not stored."""

    joined_transaction = False
    """Whether the claim is part of its caller's transaction; not stored."""

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

    def __getstate__(self) -> dict[str, Any]:
        return {k: value for k, value in super().__getstate__().items() if k != "writing"}

    def save(self, **kwargs: Any) -> None:
        """Save the row; a new one takes the next place in its conversation.

        Of a row that is there only ``HOST_FIELDS`` are written, unless ``update_fields`` names
        others: an attempt, or a person, may have moved it since it was read.
        """
        if not self._state.adding and kwargs.get("update_fields") is None:
            kwargs["update_fields"] = HOST_FIELDS
        if not self._state.adding or self.session is None or self.position:
            return super().save(**kwargs)
        with transaction.atomic(using=database()):
            self.position = self.session.reserve_position()
            return super().save(**kwargs)

    @cached_property
    def writing(self) -> threading.RLock:
        """Held while an attempt writes; not stored."""
        return threading.RLock()

    def fill(self) -> None:
        """Set owner, tenant and place in line from the session, before the first save."""
        if self.session is not None:
            self.owner_id = self.owner_id or self.session.owner_id
            self.tenant = self.tenant or self.session.tenant
            self.principal = self.principal or self.session.principal
        super().fill()

    @property
    def is_finished(self) -> bool:
        """Whether the run has ended; it may still be retried."""
        return self.status in FINISHED

    @property
    def is_active(self) -> bool:
        """Whether the run is yet to end."""
        return self.status in ACTIVE


class AgentEvent(models.Model):
    """Something that happened to a run, numbered from 1 without gaps."""

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
    """What a model has said so far of a message; deleted when the message is there."""

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


class StepCheckpoint(models.Model):
    """What a completed model call, tool call, step or child came to; never done again."""

    class Kind(models.TextChoices):
        """What was recorded."""

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
        """Whether it says only that a call that must not be repeated was begun."""
        return self.finished_at is None


class ToolApproval(models.Model):
    """Something that a run asks a person, and what was decided; the run waits meanwhile."""

    class Kind(models.TextChoices):
        """What is asked."""

        TOOL = "tool", _("Tool call")  # May this call be made?
        MCP = "mcp", _("Hosted tool call")  # May the provider make this call?
        QUESTION = "question", _("Question")  # What a host's own code wants to know.
        INTENT = "intent", _("Interrupted call")  # It may have happened: what now?

    class Decision(models.TextChoices):
        """What was decided; nothing yet is the empty text."""

        APPROVED = "approved", _("approved")
        REJECTED = "rejected", _("rejected")
        EXPIRED = "expired", _("rejected, as nobody decided in time")
        ANSWERED = "answered", _("answered")
        DONE = "done", _("marked as done")
        REPEAT = "repeat", _("to be repeated")
        FAIL = "fail", _("given up")

    id = models.UUIDField(primary_key=True, default=new_id, editable=False)
    run = models.ForeignKey(AgentRun, on_delete=models.DB_CASCADE, related_name="approvals")
    generation = models.PositiveIntegerField(_("generation"), default=1)
    key = models.CharField(_("key"), max_length=255)
    kind = models.CharField(_("kind"), max_length=8, choices=Kind, default=Kind.TOOL)
    call_id = models.CharField(_("call"), max_length=255, blank=True, default="")
    tool = models.CharField(_("tool"), max_length=255, blank=True, default="")
    agent = models.CharField(_("agent"), max_length=255, blank=True, default="")
    question = models.TextField(_("question"), blank=True, default="")
    arguments = JSONTextField(_("arguments"), null=True)
    options = models.JSONField(_("options"), default=list, blank=True)
    schema = models.JSONField(_("form"), null=True, blank=True)
    requested_at = models.DateTimeField(_("asked"), db_default=Now(), editable=False)
    position = models.PositiveSmallIntegerField(_("position"), default=0, editable=False)
    expires_at = models.DateTimeField(_("decide by"), null=True, blank=True, editable=False)
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

    objects = ApprovalScope.as_manager()

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
        """Whether nobody has decided yet."""
        return not self.decision

    @property
    def is_editable(self) -> bool:
        """Whether the arguments of a call may be changed before it is approved."""
        return self.kind == self.Kind.TOOL and self.schema is not None

    @property
    def was_edited(self) -> bool:
        """Whether a call is made with other arguments than the agent wanted."""
        edited = self.decision == self.Decision.APPROVED and self.answer is not None
        return edited and self.answer != self.arguments

    @property
    def given(self) -> Any:
        """The arguments with which a call is made, or would be."""
        return self.answer if self.was_edited else self.arguments

    @property
    def refusal(self) -> str:
        """What the model is told of a call that was not approved."""
        if self.decision == self.Decision.EXPIRED:
            return "This call was rejected, because nobody approved it in time."
        because = f" Reason: {self.reason}" if self.reason else ""
        return f"This call was rejected by a person.{because}"


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
