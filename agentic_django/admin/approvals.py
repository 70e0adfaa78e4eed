"""The admin of approvals. Users with the permission decide approvals here."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from agentic_django import services
from agentic_django.admin.base import RecordAdmin, apply_to_each, link, shown
from agentic_django.engine import approval_requests
from agentic_django.models import ToolApproval


class OpenFilter(admin.SimpleListFilter):
    """Filters approvals by whether they are decided."""

    title = _("decision")
    parameter_name = "open"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        """Return the choices."""
        return [("yes", _("waiting")), ("no", _("decided"))]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return the approvals of the chosen kind."""
        match self.value():
            case "yes":
                return approval_requests.approval_rows().open()
            case "no":
                return queryset.exclude(decision="")
        return queryset


@admin.register(ToolApproval)
class ApprovalAdmin(RecordAdmin):
    """Shows approvals. Users with the permission can approve and reject them."""

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
        "shown_options",
        "requested_at",
        "expires_at",
        "decision",
        "shown_answer",
        "reason",
        "decided_by",
        "decided_at",
    )
    shown_arguments = shown("arguments", _("arguments"))
    shown_options = shown("options", _("options"))
    shown_answer = shown("answer", _("answer"))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: approvals are deleted with their run."""
        return False

    def has_decide_permission(self, request: HttpRequest) -> bool:
        """Whether the actions are offered. ``decide_approval`` checks each approval again."""
        return request.user.has_perm("agentic_django.change_toolapproval")

    @admin.display(description=_("run"), ordering="run")
    def run_link(self, approval: ToolApproval) -> str:
        """Link to the run that waits for the approval."""
        return link(approval.run)

    @admin.action(description=_("Approve"), permissions=["decide"])
    def approve(self, request: HttpRequest, queryset: QuerySet[ToolApproval]) -> None:
        """Approve the selected calls."""
        self._decide(request, queryset, approve=True)

    @admin.action(description=_("Reject"), permissions=["decide"])
    def reject(self, request: HttpRequest, queryset: QuerySet[ToolApproval]) -> None:
        """Reject the selected calls, and decline the selected questions."""
        self._decide(request, queryset, approve=False)

    def _decide(
        self, request: HttpRequest, queryset: QuerySet[ToolApproval], *, approve: bool
    ) -> None:
        """Decide as the logged-in user. Report the number of decisions and the errors."""
        decide = partial(services.decide_approval, approve=approve, by=request.user)
        saved, errors = apply_to_each(queryset.select_related("run"), decide)
        text = ngettext("%d decision was saved.", "%d decisions were saved.", saved) % saved
        self.message_user(request, text, messages.SUCCESS if saved else messages.WARNING)
        for reason, count in errors.items():
            text = ngettext(
                "%(n)d decision was not saved: %(why)s",
                "%(n)d decisions were not saved: %(why)s",
                count,
            )
            self.message_user(request, text % {"n": count, "why": reason}, messages.WARNING)
