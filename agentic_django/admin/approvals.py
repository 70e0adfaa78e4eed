"""What runs ask, and what was decided."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Any

from django.contrib import admin, messages
from django.db.models import QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from agentic_django import services
from agentic_django.admin.base import Record, link, shown
from agentic_django.engine import approvals
from agentic_django.exceptions import AgenticError
from agentic_django.models import ToolApproval


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
                return approvals.approval_rows().open()
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
    shown_arguments = shown("arguments", _("arguments"))
    shown_answer = shown("answer", _("answer"))

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse: they go with their run."""
        return False

    def has_decide_permission(self, request: HttpRequest) -> bool:
        """Whether the decisions are offered; each is looked at again when it is taken."""
        return request.user.has_perm("agentic_django.change_toolapproval")

    @admin.display(description=_("run"), ordering="run")
    def run_link(self, approval: ToolApproval) -> str:
        """Link to the run that asks."""
        return link(approval.run)

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
        told = ngettext("%d decision was saved.", "%d decisions were saved.", done) % done
        self.message_user(request, told, messages.SUCCESS if done else messages.WARNING)
        for reason, count in refused.items():
            text = ngettext(
                "%(n)d decision was not saved: %(why)s",
                "%(n)d decisions were not saved: %(why)s",
                count,
            )
            self.message_user(request, text % {"n": count, "why": reason}, messages.WARNING)
