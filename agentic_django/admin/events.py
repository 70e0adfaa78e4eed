"""The admin of events."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from django.contrib import admin
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _

from agentic_django.admin.base import RecordAdmin, link, shown
from agentic_django.engine.events import EventType
from agentic_django.models import AgentEvent


class TypeFilter(admin.SimpleListFilter):
    """Filters events by type. Offers the app's own types, so that it needs no query."""

    title = _("type")
    parameter_name = "event_type"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        """Return the types."""
        return [(kind.value, kind.value) for kind in EventType]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return the events of the chosen type."""
        return queryset.filter(event_type=self.value()) if self.value() else queryset


@admin.register(AgentEvent)
class EventAdmin(RecordAdmin):
    """Shows events. The page of a run links to its events."""

    list_display = ("sequence", "event_type", "visibility", "run_link", "created_at")
    list_filter = (TypeFilter, "visibility", "created_at")
    list_select_related = ("run",)
    search_fields = ("run__id__exact", "run__session__session_key")
    readonly_fields = (
        "run_link",
        "sequence",
        "event_type",
        "visibility",
        "created_at",
        "shown_payload",
    )
    shown_payload = shown("payload", _("payload"))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: events are deleted with their run, or by the retention policy."""
        return False

    @admin.display(description=_("run"), ordering="run")
    def run_link(self, event: AgentEvent) -> str:
        """Link to the event's run."""
        return link(event.run)
