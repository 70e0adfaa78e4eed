"""Views of approvals: list, show, decide."""

from __future__ import annotations

from typing import Any, Literal

from django.http import Http404, HttpResponse
from django.shortcuts import get_object_or_404
from django.urls import reverse

from agentic_django import permissions, services, validation
from agentic_django.engine import approval_requests
from agentic_django.models import ToolApproval
from agentic_django.presentation.approvals import PREFIX, form_values, inbox
from agentic_django.views import fragments, lookup, pages, schemas, serializers
from agentic_django.views.decorators import endpoint
from agentic_django.views.negotiation import Format, Request, format_of, redirect_after_post

__all__ = ["approval_list", "detail"]


class DecisionRequest(schemas.Body):
    """``POST approvals/<uuid>/``."""

    decision: Literal["approve", "reject", "answer", "done", "repeat", "fail"] = "answer"
    reason: str = ""
    arguments: dict[str, Any] | None = None
    answer: Any = None
    result: str = ""


@endpoint("GET", "HEAD")
def approval_list(request: Request) -> HttpResponse:
    """List the approvals that wait for the requester."""
    waiting = inbox(request.user, request.viewer)
    if format_of(request) is Format.JSON:
        return serializers.approvals([shown.approval for shown in waiting])
    return pages.approval_list(request, waiting)


@endpoint("GET", "HEAD", "POST")
def detail(request: Request, pk: str) -> HttpResponse:
    """Show one approval, or decide it."""
    rows = approval_requests.approval_rows()
    rows = rows.select_related("run__session", "run__owner", "decided_by")
    approval = get_object_or_404(rows, pk=lookup.parse_uuid(pk))
    is_visible = rows.visible_to(request.viewer).filter(pk=approval.pk).exists()
    if not is_visible and not permissions.may_decide(request.user, approval):
        raise Http404
    is_owner = approval.run.principal == request.viewer.principal
    expected = format_of(request)
    if request.method == "POST":
        _decide(request, approval, _parse_decision(request, approval))
        if expected is Format.PAGE:
            run_page = reverse("agents:run-detail", args=[approval.run_id])
            # Other people than the owner continue with the approvals that still wait.
            url = run_page if is_owner else reverse("agents:approval-list")
            return redirect_after_post(request, url)
    if expected is Format.JSON:
        return serializers.approval(approval)
    # htmx 4 sends the tag together with the id of the target.
    if is_owner and "run-container" in request.headers.get("HX-Target", ""):
        run = lookup.get_run_for_display(request, str(approval.run_id))
        return fragments.run_fragment(request, run)
    render = pages.approval if expected is Format.PAGE else fragments.approval
    return render(request, approval)


def _parse_decision(request: Request, approval: ToolApproval) -> DecisionRequest:
    """Return the decision in the body. A form sends arguments and answers field by field."""
    if request.content_type not in schemas.FORM_TYPES:
        return schemas.parse_body(request, DecisionRequest)
    # A form may repeat a field that is empty elsewhere. A single empty field is an empty value.
    lists = {name: list(filter(None, values)) or [""] for name, values in request.POST.lists()}
    posted = schemas.single_values(lists)
    fields = DecisionRequest.model_fields
    data: dict[str, Any] = {name: posted[name] for name in fields if posted.get(name)}
    data.pop("arguments", None)
    if approval.is_editable:
        # A form of unchecked boxes sends no fields, so it says itself that it was changed.
        is_changed = "changed" in posted or any(name.startswith(PREFIX) for name in posted)
        if data.get("decision") == "approve" and is_changed:
            data["arguments"] = form_values(approval, posted)
    elif "properties" in (approval.schema or {}):
        data["answer"] = form_values(approval, posted)
    validation.check_json(data)
    return validation.validated(DecisionRequest, data, strict=False)


def _decide(request: Request, approval: ToolApproval, body: DecisionRequest) -> None:
    by, reason = request.user, body.reason
    match body.decision:
        case "approve" | "reject" as verb:
            approve = verb == "approve"
            services.decide_approval(
                approval, approve, by=by, reason=reason, arguments=body.arguments
            )
        case "answer":
            services.answer_approval(approval, body.answer, by=by)
        case outcome:
            services.resolve_approval(approval, outcome, by=by, reason=reason, result=body.result)
