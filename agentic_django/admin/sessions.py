"""The admin of conversations."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.contrib import admin
from django.db.models import F, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from agentic_django.admin.base import (
    SHOWN_ROWS,
    OwnerFilter,
    RecordAdmin,
    RelatedRows,
    link,
    list_link,
    owner_search,
    shown,
)
from agentic_django.models import ACTIVE, AgentRun, AgentSession, AgentSessionItem


class ItemRows(RelatedRows):
    """The last items of a session."""

    model = AgentSessionItem
    verbose_name_plural = _("last items")
    fields = readonly_fields = ("sequence", "created_at", "run_link", "shown_payload")
    ordering = ("sequence",)
    shown_payload = shown("payload", _("payload"))

    def get_queryset(self, request: HttpRequest) -> QuerySet[AgentSessionItem]:
        """Return the last items of each session."""
        rows = super().get_queryset(request).select_related("run")
        return rows.filter(sequence__gt=F("session__item_count") - SHOWN_ROWS)

    @admin.display(description=_("run"))
    def run_link(self, item: AgentSessionItem) -> str:
        """Link to the run that wrote the item."""
        return link(item.run)


@admin.register(AgentSession)
class SessionAdmin(RecordAdmin):
    """Shows conversations, their runs and their last items."""

    list_display = (
        "session_key",
        "title",
        "agent_key",
        "owner",
        "run_count",
        "item_count",
        "updated_at",
    )
    list_filter = ("agent_key", OwnerFilter, "created_at", "archived_at")
    list_select_related = ("owner",)
    ordering = ("-updated_at",)
    readonly_fields = (
        "id",
        "session_key",
        "title",
        "agent_key",
        "owner",
        "tenant",
        "principal",
        "runs_link",
        "item_count",
        "shown_metadata",
        "created_at",
        "updated_at",
        "archived_at",
    )
    inlines = (ItemRows,)
    shown_metadata = shown("metadata", _("metadata"))

    def get_search_fields(self, request: HttpRequest) -> tuple[str, ...]:
        """Return the fields that a search uses."""
        return ("^id", "session_key", "title", owner_search())

    @admin.display(description=_("runs"))
    def runs_link(self, session: AgentSession) -> str:
        """Link to the session's runs."""
        return list_link(AgentRun, str(session.run_count), session__id__exact=session.pk)

    def unfinished_runs(self, rows: Iterable[Any]) -> Iterable[AgentRun]:
        """Return the sessions' unfinished runs."""
        return AgentRun.objects.filter(session__in=rows, status__in=ACTIVE)
