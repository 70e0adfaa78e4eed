"""Writes a run's requests to people: the rows of ``ToolApproval`` before they are decided."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from django.db.models import Q
from django.db.models.functions import Now

from agentic_django.conf import settings
from agentic_django.engine.events import Event, EventType, new_event
from agentic_django.models import AgentRun, ToolApproval, database
from agentic_django.models.querysets import ApprovalQuerySet

__all__ = ["approval_event", "approval_rows", "create_requests", "reopen_requests"]


def approval_rows() -> ApprovalQuerySet:
    """Return a queryset of the approvals in the app's database."""
    return ToolApproval.objects.using(database())


def create_requests(requests: Sequence[ToolApproval]) -> None:
    """Write the requests of a run, in the transaction that suspends it.

    A request that was written by an earlier attempt is updated.
    """
    ttl = settings.APPROVAL_TTL
    expires_at = None if ttl is None else Now() + timedelta(seconds=ttl)
    for position, request in enumerate(requests):
        request.position = position
        request.expires_at = expires_at
        request.requested_at = Now()
        request.save(using=database())


def reopen_requests(run: AgentRun) -> None:
    """Reopen the requests that ended a run, because a person retries it.

    These are interrupted calls that a person marked as failed, and questions that expired.
    """
    failed = Q(decision=ToolApproval.Decision.FAIL)
    expired = Q(kind=ToolApproval.Kind.QUESTION, decision=ToolApproval.Decision.EXPIRED)
    approval_rows().filter(failed | expired, run=run).update(
        decision="", decided_by=None, decided_at=None, reason="", answer=None
    )


def approval_event(event_type: EventType, approval: ToolApproval, **details: Any) -> Event:
    """Return an event about an approval, to be appended to the approval's run."""
    return new_event(
        event_type,
        approval_id=str(approval.pk),
        call_id=approval.call_id,
        tool=approval.tool,
        arguments=approval.effective_arguments,
        **details,
    )
