"""What waits for a person: the list, one of it, and the decision."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.urls import reverse

from agentic_django import permissions, services, validation
from agentic_django.conf import settings
from agentic_django.engine import approvals
from agentic_django.models import AgentRun, ToolApproval, database
from agentic_django.presentation.approvals import PREFIX, as_seen_by, form_values, inbox
from agentic_django.views import fragments, schemas, serializers
from agentic_django.views.decorators import endpoint
from agentic_django.views.negotiation import Format, Request, format_of
from agentic_django.views.runs import run_id

__all__ = ["detail", "listing"]


class DecisionRequest(schemas.Body):
    """``POST approvals/<uuid>/``."""

    decision: Literal["approve", "reject", "answer", "done", "repeat", "fail"] = "answer"
    reason: str = ""
    arguments: dict[str, Any] | None = None
    answer: Any = None
    result: str = ""


@endpoint("GET", "HEAD")
def listing(request: Request) -> HttpResponse:
    """Show what waits for the caller."""
    asked = inbox(request.user, request.viewer)
    if format_of(request) is Format.JSON:
        return serializers.approvals([one.approval for one in asked])
    context = {"asked": asked, "base_template": settings.BASE_TEMPLATE}
    return render(request, "agentic_django/approvals.html", context)


@endpoint("GET", "HEAD", "POST")
def detail(request: Request, pk: str) -> HttpResponse:
    """Show one approval, or decide it."""
    approval = _find(request, pk)
    if request.method != "POST":
        return _shown(request, approval)
    _decide(request, approval, _asked(request, approval))
    if format_of(request) is Format.PAGE:
        return _away(request, approval)
    return _shown(request, approval)


def _find(request: Request, pk: str) -> ToolApproval:
    rows = approvals.approval_rows().select_related("run__session", "run__owner", "decided_by")
    approval = get_object_or_404(rows, pk=run_id(pk))
    is_own = rows.visible_to(request.viewer).filter(pk=approval.pk).exists()
    if not is_own and not permissions.may_decide(request.user, approval):
        raise Http404
    return approval


def _asked(request: Request, approval: ToolApproval) -> DecisionRequest:
    """Return what the caller decides; a form gives arguments and answers field by field."""
    if request.content_type not in schemas.FORMS:
        return schemas.parse_body(request, DecisionRequest)
    posted = {name: str(value) for name, value in request.POST.items()}
    known = DecisionRequest.model_fields
    data: dict[str, Any] = {name: posted[name] for name in known if posted.get(name)}
    data.pop("arguments", None)
    if approval.is_editable:
        if data.get("decision") == "approve" and _is_changed(posted):
            data["arguments"] = form_values(approval, posted)
    elif "properties" in (approval.schema or {}):
        data["answer"] = form_values(approval, posted)
    validation.check_json(data)
    return validation.validated(DecisionRequest, data, strict=False)


def _is_changed(posted: Mapping[str, str]) -> bool:
    """Whether a form has fields; unchecked boxes alone leave none, so it says so itself."""
    return "changed" in posted or any(name.startswith(PREFIX) for name in posted)


def _decide(request: Request, approval: ToolApproval, asked: DecisionRequest) -> None:
    by, reason = request.user, asked.reason
    match asked.decision:
        case "approve" | "reject" as verb:
            approve = verb == "approve"
            services.decide_approval(
                approval, approve, by=by, reason=reason, arguments=asked.arguments
            )
        case "answer":
            services.answer_approval(approval, asked.answer, by=by)
        case outcome:
            services.resolve_approval(approval, outcome, by=by, reason=reason, result=asked.result)


def _is_own(request: Request, approval: ToolApproval) -> bool:
    return approval.run.principal == request.viewer.principal


def _away(request: Request, approval: ToolApproval) -> HttpResponse:
    """Send a browser to where its decision is seen: the run, or what else waits."""
    own = reverse("agents:run-detail", args=[approval.run_id])
    response = redirect(own if _is_own(request, approval) else reverse("agents:approval-list"))
    response.status_code = 303
    return response


def _shown(request: Request, approval: ToolApproval) -> HttpResponse:
    if format_of(request) is Format.JSON:
        return serializers.approval(approval)
    in_run = "run-container" in request.headers.get("HX-Target", "")  # htmx 4 names the tag too.
    if in_run and _is_own(request, approval):
        run = AgentRun.objects.using(database()).select_related("session")
        return fragments.shown(
            request, run.with_queue_position().with_steps().get(pk=approval.run_id)
        )
    context = {
        "one": as_seen_by(approval, request.user),
        "base_template": settings.BASE_TEMPLATE,
    }
    is_page = format_of(request) is Format.PAGE
    name = "approval_page.html" if is_page else "partials/approval.html"
    return render(request, f"agentic_django/{name}", context)
