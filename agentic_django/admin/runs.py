"""The admin of runs, with the operations page."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from django.contrib import admin, messages
from django.core.exceptions import PermissionDenied
from django.db.models import F, OuterRef, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from agentic_django import services
from agentic_django.admin import operations
from agentic_django.admin.base import (
    SHOWN_ROWS,
    OwnerFilter,
    RecordAdmin,
    RelatedRows,
    apply_to_each,
    link,
    list_link,
    owner_search,
    pretty,
    shown,
)
from agentic_django.models import AgentEvent, AgentRun, StepCheckpoint
from agentic_django.presentation import wording
from agentic_django.steps import ExecutionState


class EventRows(RelatedRows):
    """The last events of a run."""

    model = AgentEvent
    verbose_name_plural = _("last events")
    fields = readonly_fields = (
        "sequence",
        "created_at",
        "event_type",
        "visibility",
        "shown_payload",
    )
    ordering = ("sequence",)
    shown_payload = shown("payload", _("payload"))

    def get_queryset(self, request: HttpRequest) -> QuerySet[AgentEvent]:
        """Return the last events of each run."""
        rows = super().get_queryset(request)
        return rows.filter(sequence__gt=F("run__event_count") - SHOWN_ROWS)


class CheckpointRows(RelatedRows):
    """The last recorded calls of a run."""

    model = StepCheckpoint
    verbose_name_plural = _("last recorded calls")
    fields = readonly_fields = (
        "key",
        "kind",
        "name",
        "attempt",
        "finished_at",
        "duration",
        "error",
        "shown_result",
    )
    ordering = ("id",)
    shown_result = shown("result", _("result"))

    def get_queryset(self, request: HttpRequest) -> QuerySet[StepCheckpoint]:
        """Return the last recorded calls of each run."""
        rows = super().get_queryset(request)
        beside = StepCheckpoint.objects.filter(run=OuterRef("run")).order_by("-pk").values("pk")
        return rows.filter(pk__in=Subquery(beside[:SHOWN_ROWS]))

    @admin.display(description=_("duration"))
    def duration(self, row: StepCheckpoint) -> str:
        """Return the duration of the call, with its unit."""
        return wording.duration(row.duration_seconds)


@admin.register(AgentRun)
class RunAdmin(RecordAdmin):
    """Shows runs. Users with the permission can stop and retry them."""

    list_display = (
        "__str__",
        "status",
        "agent_key",
        "owner",
        "session_link",
        "attempt",
        "created_at",
        "finished_at",
        "error_code",
    )
    list_filter = ("status", "agent_key", OwnerFilter, "created_at")
    list_select_related = ("owner", "session")
    ordering = ("-created_at",)
    inlines = (EventRows, CheckpointRows)
    actions = ("stop_runs", "retry_runs")
    fieldsets = (
        (
            None,
            {
                "fields": (
                    "id",
                    "status",
                    "agent_key",
                    "owner",
                    "session_link",
                    "parent_link",
                    "children_link",
                    "shown_input",
                    "shown_output",
                    "error",
                )
            },
        ),
        (
            _("Operations data"),
            {
                "fields": (
                    "error_code",
                    "shown_detail",
                    "activity",
                    "attempt",
                    "failures",
                    "generation",
                    "holder",
                    "lease_ends_at",
                    "task_id",
                    "priority",
                    "position",
                    "shown_state",
                    "events_link",
                )
            },
        ),
        (
            _("Options and usage"),
            {
                "fields": (
                    "tenant",
                    "principal",
                    "shown_config",
                    "shown_context",
                    "shown_metadata",
                    "shown_usage",
                )
            },
        ),
        (
            _("Times"),
            {
                "fields": (
                    "created_at",
                    "available_at",
                    "enqueued_at",
                    "started_at",
                    "finished_at",
                    "updated_at",
                    "worked",
                )
            },
        ),
    )
    readonly_fields = tuple(str(name) for _label, part in fieldsets for name in part["fields"])
    shown_input = shown("input_payload", _("input"))
    shown_output = shown("final_output", _("output"))
    shown_detail = shown("error_detail", _("error detail"))
    shown_config = shown("config", _("run options"))
    shown_context = shown("context", _("context"))
    shown_metadata = shown("metadata", _("metadata"))
    shown_usage = shown("usage", _("usage"))

    @admin.display(description=_("Worked"))
    def worked(self, run: AgentRun) -> str:
        """Return the time in which the run worked, with its unit."""
        return wording.duration(run.active_seconds)

    def get_search_fields(self, request: HttpRequest) -> tuple[str, ...]:
        """Return the fields that a search uses."""
        return ("^id", "session__session_key", "error", "error_detail", owner_search())

    def get_queryset(self, request: HttpRequest) -> QuerySet[AgentRun]:
        """Defer long columns in the list, and select the related rows that a page links to."""
        rows = super().get_queryset(request)
        if request.resolver_match and request.resolver_match.url_name.endswith("_changelist"):  # type: ignore[union-attr]
            return rows.defer("input_payload", "final_output", "error_detail", "context")
        return rows.select_related("owner", "session", "parent")

    def get_urls(self) -> list[Any]:
        """Return the URLs of the admin and of the operations page."""
        view = self.admin_site.admin_view(self.operations)
        return [path("operations/", view, name="agentic_django_operations"), *super().get_urls()]

    def operations(self, request: HttpRequest) -> HttpResponse:
        """Show the metrics of all runs."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        filters = operations.parse_filters(request.GET)
        figures = operations.operations(**filters)
        context = {
            **self.admin_site.each_context(request),
            "title": _("Operations"),
            "opts": self.opts,
            "figures": figures,
            "charts": operations.charts(figures),
            "choices": operations.choices(filters),
            "columns": operations.columns(filters),
            "runs_address": reverse("admin:agentic_django_agentrun_changelist"),
        }
        return TemplateResponse(request, "admin/agentic_django/operations.html", context)

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Whether the user may stop and retry runs."""
        return bool(request.user.has_perm("agentic_django.change_agentrun"))

    @admin.display(description=_("session"), ordering="session__session_key")
    def session_link(self, run: AgentRun) -> str:
        """Link to the run's session."""
        return link(run.session)

    @admin.display(description=_("parent"))
    def parent_link(self, run: AgentRun) -> str:
        """Link to the run that started this one."""
        return link(run.parent)

    @admin.display(description=_("children"))
    def children_link(self, run: AgentRun) -> str:
        """Link to the runs that this one started."""
        return list_link(AgentRun, str(_("Show")), parent__id__exact=run.pk)

    @admin.display(description=_("step state"))
    def shown_state(self, run: AgentRun) -> str:
        """Return the completed steps of a pipeline, and the state that they share."""
        state = ExecutionState.for_run(run)
        if not state.completed_steps:
            return "-"
        return pretty({"completed_steps": state.completed_steps, "state": state.custom_state})

    @admin.display(description=_("events"))
    def events_link(self, run: AgentRun) -> str:
        """Link to all events of the run."""
        return list_link(AgentEvent, str(run.event_count), run__id__exact=run.pk)

    def unfinished_runs(self, rows: Iterable[Any]) -> Iterable[AgentRun]:
        """Return the unfinished runs among these."""
        return [run for run in rows if run.is_active]

    @admin.action(description=_("Stop selected runs"), permissions=["operate"])
    def stop_runs(self, request: HttpRequest, queryset: QuerySet[AgentRun]) -> None:
        """Cancel the selected runs."""
        cancel = partial(services.cancel_agent_run, by=request.user)
        done = self._apply(request, queryset, cancel)
        if done:
            text = ngettext("%d run was stopped.", "%d runs were stopped.", done) % done
            self.message_user(request, text)

    @admin.action(description=_("Retry"), permissions=["operate"])
    def retry_runs(self, request: HttpRequest, queryset: QuerySet[AgentRun]) -> None:
        """Retry the selected runs."""
        retry = partial(services.retry_agent_run, by=request.user)
        done = self._apply(request, queryset, retry)
        if done:
            text = ngettext("%d run was queued again.", "%d runs were queued again.", done) % done
            self.message_user(request, text)

    def _apply(
        self, request: HttpRequest, runs: QuerySet[AgentRun], action: Callable[[AgentRun], Any]
    ) -> int:
        """Apply an action to each run, report its errors, and return how often it succeeded."""
        succeeded, errors = apply_to_each(runs.select_related("session", "owner"), action)
        for reason, count in errors.items():
            text = ngettext(
                "%(n)d run was not changed: %(why)s", "%(n)d runs were not changed: %(why)s", count
            )
            self.message_user(request, text % {"n": count, "why": reason}, messages.WARNING)
        return succeeded
