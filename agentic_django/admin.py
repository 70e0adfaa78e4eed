"""The record of sessions and runs for operators: read, stop, try again, delete; never edit."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any

from django.contrib import admin, messages
from django.contrib.auth import get_user_model
from django.core.exceptions import PermissionDenied
from django.db.models import F, Model, OuterRef, QuerySet, Subquery
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from agentic_django import approvals, operations, services, wording
from agentic_django.events import EventType
from agentic_django.exceptions import AgenticError
from agentic_django.models import (
    ACTIVE,
    AgentEvent,
    AgentRun,
    AgentSession,
    AgentSessionItem,
    StepCheckpoint,
    ToolApproval,
)
from agentic_django.steps import ExecutionState

if TYPE_CHECKING:  # Only the type checker's view of these classes takes parameters.
    _Admin = admin.ModelAdmin[Any]
    _Inline = admin.TabularInline[Any, Any]
else:
    _Admin, _Inline = admin.ModelAdmin, admin.TabularInline

_SHOWN_ROWS = 200
_SHOWN_CHARACTERS = 20_000


def _pretty(value: Any) -> str:
    """Return a stored value as indented JSON (text as it is), cut where it gets long."""
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
    # What a model wrote may hold half a character, which cannot be sent as UTF-8.
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) > _SHOWN_CHARACTERS:
        more = len(text) - _SHOWN_CHARACTERS
        told = ngettext("… %d more character", "… %d more characters", more) % more
        text = f"{text[:_SHOWN_CHARACTERS]}\n{told}"
    return format_html('<pre class="agentic-value">{}</pre>', text)


def _value(name: str, label: Any) -> Callable[..., str]:
    """Return a column that shows a field's stored value."""

    @admin.display(description=label, empty_value="-")
    def show(_admin: Any, row: Model) -> str:
        value = getattr(row, name)
        return "-" if value in (None, "", {}, []) else _pretty(value)

    return show


def _link(row: Model | None, label: Any = None) -> str:
    """Return a link to a row's page, or a dash if there is no row."""
    if row is None:
        return "-"
    url = reverse(f"admin:agentic_django_{row._meta.model_name}_change", args=[row.pk])
    return format_html('<a href="{}">{}</a>', url, label or row)


def _list_link(model: type[Model], label: str, **only: Any) -> str:
    """Return a link to the list of those rows that a lookup leaves."""
    url = reverse(f"admin:agentic_django_{model._meta.model_name}_changelist", query=only)
    return format_html('<a href="{}">{}</a>', url, label)


def _owner_search() -> str:
    return f"owner__{get_user_model().USERNAME_FIELD}"


class ReadOnly:
    """Rows are the record of what happened: nobody adds or changes them by hand."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse: sessions and runs are made through the services."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse: a run changes through its verbs."""
        return False

    class Media:
        """How stored values look."""

        css = {"all": ("agentic_django/admin.css",)}  # noqa: RUF012


class Rows(ReadOnly, _Inline):
    """The last rows that belong to the one shown."""

    extra = 0
    can_delete = False
    show_change_link = False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse: they go with the row they belong to."""
        return False


class ItemRows(Rows):
    """The last items of a session."""

    model = AgentSessionItem
    verbose_name_plural = _("last items")
    fields = readonly_fields = ("sequence", "created_at", "run_link", "shown_payload")
    ordering = ("sequence",)
    shown_payload = _value("payload", _("payload"))

    def get_queryset(self, request: HttpRequest) -> QuerySet[AgentSessionItem]:
        """Return the last items of each session."""
        rows = super().get_queryset(request).select_related("run")
        return rows.filter(sequence__gt=F("session__item_count") - _SHOWN_ROWS)

    @admin.display(description=_("run"))
    def run_link(self, item: AgentSessionItem) -> str:
        """Link to the run that wrote the item."""
        return _link(item.run)


class EventRows(Rows):
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
    shown_payload = _value("payload", _("payload"))

    def get_queryset(self, request: HttpRequest) -> QuerySet[AgentEvent]:
        """Return the last events of each run."""
        rows = super().get_queryset(request)
        return rows.filter(sequence__gt=F("run__event_count") - _SHOWN_ROWS)


class CheckpointRows(Rows):
    """The last calls that a run recorded."""

    model = StepCheckpoint
    verbose_name_plural = _("last recorded calls")
    fields = readonly_fields = (
        "key",
        "kind",
        "name",
        "attempt",
        "finished_at",
        "took",
        "error",
        "shown_result",
    )
    ordering = ("id",)
    shown_result = _value("result", _("result"))

    def get_queryset(self, request: HttpRequest) -> QuerySet[StepCheckpoint]:
        """Return the last recorded calls of each run."""
        rows = super().get_queryset(request)
        beside = StepCheckpoint.objects.filter(run=OuterRef("run")).order_by("-pk").values("pk")
        return rows.filter(pk__in=Subquery(beside[:_SHOWN_ROWS]))

    @admin.display(description=_("duration"))
    def took(self, row: StepCheckpoint) -> str:
        """Return how long the call took, with its unit."""
        return wording.duration(row.duration_seconds)


class Record(ReadOnly, _Admin):
    """What the pages of sessions, runs and events have in common."""

    date_hierarchy = "created_at"
    show_full_result_count = False
    list_per_page = 50

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Return all that the page shows; nothing of it can be edited."""
        return self.get_readonly_fields(request, obj)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Return what would be deleted, and protect what a worker may hold.

        Events, items and recorded calls go along without being listed: there may be very many,
        and nobody may delete them on their own.
        """
        rows = list(objs)
        names = {str(self.opts.verbose_name_plural): len(rows)}
        denied = [row for row in rows if not self.has_delete_permission(request, row)]
        needed = {str(self.opts.verbose_name)} if denied else set()
        sentence = _("{} is not finished: stop it first")
        busy = [format_html(str(sentence), _link(run)) for run in self.busy(rows)]
        return [_link(row) for row in rows], names, needed, busy

    def busy(self, rows: Iterable[Any]) -> Iterable[AgentRun]:
        """Return the unfinished runs that would be deleted with these rows."""
        return ()


class OwnerFilter(admin.SimpleListFilter):
    """Whose rows: those who own the newest, and whoever is chosen by the link of another row."""

    title = _("owner")
    parameter_name = "owner"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        """Return some owners by name."""
        newest = model_admin.model.objects.exclude(owner=None).order_by(*model_admin.ordering)
        keys = set(newest.values_list("owner", flat=True)[:_SHOWN_ROWS])
        chosen = request.GET.get(self.parameter_name, "")
        owners = get_user_model()._default_manager.filter(pk__in=keys)
        names = sorted((str(owner), str(owner.pk)) for owner in owners)
        known = [(key, name) for name, key in names]
        return known if not chosen or chosen in dict(known) else [*known, (chosen, chosen)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return the rows of the chosen owner."""
        key = self.value()
        return queryset.filter(principal=f"user:{key}") if key else queryset


@admin.register(AgentSession)
class SessionAdmin(Record):
    """Conversations."""

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
    shown_metadata = _value("metadata", _("metadata"))

    def get_search_fields(self, request: HttpRequest) -> tuple[str, ...]:
        """Return what a search looks at."""
        return ("^id", "session_key", "title", _owner_search())

    @admin.display(description=_("runs"))
    def runs_link(self, session: AgentSession) -> str:
        """Link to the session's runs."""
        return _list_link(AgentRun, str(session.run_count), session__id__exact=session.pk)

    def busy(self, rows: Iterable[Any]) -> Iterable[AgentRun]:
        """Return the sessions' unfinished runs."""
        return AgentRun.objects.filter(session__in=rows, status__in=ACTIVE)


@admin.register(AgentRun)
class RunAdmin(Record):
    """Runs: what was asked, what came of it, and why not."""

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
            _("For operators"),
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
            _("Given and used"),
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
                    "active_seconds",
                )
            },
        ),
    )
    readonly_fields = tuple(str(name) for _label, part in fieldsets for name in part["fields"])
    shown_input = _value("input_payload", _("input"))
    shown_output = _value("final_output", _("output"))
    shown_detail = _value("error_detail", _("error detail"))
    shown_config = _value("config", _("run options"))
    shown_context = _value("context", _("context"))
    shown_metadata = _value("metadata", _("metadata"))
    shown_usage = _value("usage", _("usage"))

    def get_search_fields(self, request: HttpRequest) -> tuple[str, ...]:
        """Return what a search looks at."""
        return ("^id", "session__session_key", "error", "error_detail", _owner_search())

    def get_queryset(self, request: HttpRequest) -> QuerySet[AgentRun]:
        """Leave the long columns out of the list, and look up what a page links to."""
        rows = super().get_queryset(request)
        if request.resolver_match and request.resolver_match.url_name.endswith("_changelist"):  # type: ignore[union-attr]
            return rows.defer("input_payload", "final_output", "error_detail", "context")
        return rows.select_related("owner", "session", "parent")

    def get_urls(self) -> list[Any]:
        """Return the admin's addresses, and that of the figures."""
        view = self.admin_site.admin_view(self.operations)
        return [path("operations/", view, name="agentic_django_operations"), *super().get_urls()]

    def operations(self, request: HttpRequest) -> HttpResponse:
        """Show how the whole installation does."""
        if not self.has_view_permission(request):
            raise PermissionDenied
        asked = operations.asked(request.GET)
        figures = operations.operations(**asked)
        context = {
            **self.admin_site.each_context(request),
            "title": _("Operations"),
            "opts": self.opts,
            "figures": figures,
            "charts": operations.charts(figures),
            "choices": operations.choices(asked),
            "columns": operations.columns(asked),
            "runs_address": reverse("admin:agentic_django_agentrun_changelist"),
        }
        return TemplateResponse(request, "admin/agentic_django/operations.html", context)

    def has_operate_permission(self, request: HttpRequest) -> bool:
        """Whether the person may stop runs and try them again."""
        return bool(request.user.has_perm("agentic_django.change_agentrun"))

    @admin.display(description=_("session"), ordering="session__session_key")
    def session_link(self, run: AgentRun) -> str:
        """Link to the run's session."""
        return _link(run.session)

    @admin.display(description=_("parent"))
    def parent_link(self, run: AgentRun) -> str:
        """Link to the run that started this one."""
        return _link(run.parent)

    @admin.display(description=_("children"))
    def children_link(self, run: AgentRun) -> str:
        """Link to the runs that this one started."""
        return _list_link(AgentRun, str(_("Show")), parent__id__exact=run.pk)

    @admin.display(description=_("state of its steps"))
    def shown_state(self, run: AgentRun) -> str:
        """Return what the steps of a pipeline keep between them, and which are done."""
        state = ExecutionState.for_run(run)
        if not state.completed_steps:
            return "-"
        return _pretty({"completed_steps": state.completed_steps, "state": state.custom_state})

    @admin.display(description=_("events"))
    def events_link(self, run: AgentRun) -> str:
        """Link to all events of the run."""
        return _list_link(AgentEvent, str(run.event_count), run__id__exact=run.pk)

    def busy(self, rows: Iterable[Any]) -> Iterable[AgentRun]:
        """Return those of the runs that have not ended."""
        return [run for run in rows if run.is_active]

    @admin.action(description=_("Stop selected runs"), permissions=["operate"])
    def stop_runs(self, request: HttpRequest, queryset: QuerySet[AgentRun]) -> None:
        """Cancel the selected runs."""
        cancel = partial(services.cancel_agent_run, by=request.user)
        done = self._each(request, queryset, cancel)
        if done:
            text = ngettext("%d run was stopped.", "%d runs were stopped.", done) % done
            self.message_user(request, text)

    @admin.action(description=_("Try again"), permissions=["operate"])
    def retry_runs(self, request: HttpRequest, queryset: QuerySet[AgentRun]) -> None:
        """Retry the selected runs."""
        retry = partial(services.retry_agent_run, by=request.user)
        done = self._each(request, queryset, retry)
        if done:
            text = ngettext("%d run is tried again.", "%d runs are tried again.", done) % done
            self.message_user(request, text)

    def _each(
        self, request: HttpRequest, runs: QuerySet[AgentRun], verb: Callable[[AgentRun], Any]
    ) -> int:
        """Do something to each run; tell the reasons of those that refused, return the rest."""
        refused: Counter[str] = Counter()
        done = 0
        for run in runs.select_related("session", "owner"):
            try:
                verb(run)
                done += 1
            except AgenticError as error:
                refused[str(error)] += 1
        for reason, count in refused.items():
            text = ngettext("%(n)d run was left: %(why)s", "%(n)d runs were left: %(why)s", count)
            self.message_user(request, text % {"n": count, "why": reason}, messages.WARNING)
        return done


class OpenFilter(admin.SimpleListFilter):
    """What waits for a decision, and what does not."""

    title = _("decision")
    parameter_name = "open"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        """Return the two."""
        return [("yes", _("waiting")), ("no", _("decided"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return the chosen ones."""
        match self.value():
            case "yes":
                return approvals.rows().open()
            case "no":
                return queryset.exclude(decision="")
        return queryset


@admin.register(ToolApproval)
class ApprovalAdmin(Record):
    """What runs ask, and what was decided; those who may can decide here."""

    date_hierarchy = "requested_at"
    list_display = (
        "__str__",
        "kind",
        "agent",
        "run_link",
        "requested_at",
        "expires_at",
        "decision",
        "decided_by",
    )
    list_filter = (OpenFilter, "kind", "decision", "requested_at")
    list_select_related = ("run", "decided_by")
    ordering = ("-requested_at",)
    search_fields = ("tool", "agent", "run__id__exact")
    actions = ("approve", "reject")
    readonly_fields = (
        "id",
        "run_link",
        "kind",
        "tool",
        "agent",
        "call_id",
        "question",
        "shown_arguments",
        "options",
        "requested_at",
        "expires_at",
        "decision",
        "shown_answer",
        "reason",
        "decided_by",
        "decided_at",
    )
    shown_arguments = _value("arguments", _("arguments"))
    shown_answer = _value("answer", _("answer"))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse: they go with their run."""
        return False

    def has_decide_permission(self, request: HttpRequest) -> bool:
        """Whether the decisions are offered; each is looked at again when it is taken."""
        return request.user.has_perm("agentic_django.change_toolapproval")

    @admin.display(description=_("run"), ordering="run")
    def run_link(self, approval: ToolApproval) -> str:
        """Link to the run that asks."""
        return _link(approval.run)

    @admin.action(description=_("Approve"), permissions=["decide"])
    def approve(self, request: HttpRequest, queryset: QuerySet[ToolApproval]) -> None:
        """Approve the chosen calls."""
        self._decide(request, queryset, approve=True)

    @admin.action(description=_("Reject"), permissions=["decide"])
    def reject(self, request: HttpRequest, queryset: QuerySet[ToolApproval]) -> None:
        """Reject the chosen calls, and decline the chosen questions."""
        self._decide(request, queryset, approve=False)

    def _decide(
        self, request: HttpRequest, queryset: QuerySet[ToolApproval], *, approve: bool
    ) -> None:
        """Decide as the one who is logged in: an operator who may; say what was left and why."""
        done, refused = 0, Counter[str]()
        for approval in queryset.select_related("run"):
            try:
                services.decide_approval(approval, approve, by=request.user)
                done += 1
            except AgenticError as error:
                refused[str(error)] += 1
        told = ngettext("%d decision was taken.", "%d decisions were taken.", done) % done
        self.message_user(request, told, messages.SUCCESS if done else messages.WARNING)
        for reason, count in refused.items():
            text = ngettext("%(n)d was left: %(why)s", "%(n)d were left: %(why)s", count)
            self.message_user(request, text % {"n": count, "why": reason}, messages.WARNING)


class TypeFilter(admin.SimpleListFilter):
    """The types of events that the app writes, without a look through the whole table."""

    title = _("type")
    parameter_name = "event_type"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        """Return each type."""
        return [(kind.value, kind.value) for kind in EventType]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return the events of the chosen type."""
        return queryset.filter(event_type=self.value()) if self.value() else queryset


@admin.register(AgentEvent)
class EventAdmin(Record):
    """Events; one run's come from its page."""

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
    shown_payload = _value("payload", _("payload"))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse: events go with their run, or by the retention policy."""
        return False

    @admin.display(description=_("run"), ordering="run")
    def run_link(self, event: AgentEvent) -> str:
        """Link to the event's run."""
        return _link(event.run)
