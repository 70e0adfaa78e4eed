"""Ask a person, take one decision.

A row says what is asked and what was decided. It is written by the attempt that parks its run,
and decided about once: the guard is in the write. The run itself is ``lifecycle``'s.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import jsonschema
from django.db.models import Q
from django.db.models.functions import Now
from django.utils.translation import gettext as _

from agentic_django.conf import settings
from agentic_django.exceptions import BadInput, Conflict
from agentic_django.models import AgentRun, ToolApproval, database
from agentic_django.models.querysets import ApprovalQuerySet
from agentic_django.permissions import Viewer, may_decide

__all__ = [
    "approval_rows",
    "awaiting",
    "create_requests",
    "has_open",
    "record_decision",
    "refuse_decided",
    "reopen",
    "validated_answer",
]

MAX_CHECKED = 1000
"""A list of approvals calls ``AGENTIC_DJANGO_APPROVERS`` for at most this many, the oldest."""

Decision = ToolApproval.Decision
Kind = ToolApproval.Kind


def approval_rows() -> ApprovalQuerySet:
    """Return the approvals, in the database that holds them."""
    return ToolApproval.objects.using(database())


def create_requests(asked: Sequence[ToolApproval]) -> None:
    """Write what a run asks, in the transaction that parks it; what is asked again stays one."""
    ttl = settings.APPROVAL_TTL
    expires = None if ttl is None else Now() + timedelta(seconds=ttl)
    for position, row in enumerate(asked):
        row.position = position
        row.expires_at = expires
        row.requested_at = Now()
        row.save(using=database())


def record_decision(
    approval: ToolApproval, decision: str, *, by: Any = None, reason: str = "", answer: Any = None
) -> None:
    """Write what was decided; raises Conflict, which says who did what, if somebody has.

    Belongs behind a guarded write to the run, in one transaction.
    """
    open_ = approval_rows().filter(pk=approval.pk, decision="")
    changes = {"decision": decision, "decided_by": by, "reason": reason, "answer": answer}
    is_mine = bool(open_.update(**changes, decided_at=Now()))
    approval.refresh_from_db()
    if not is_mine:
        raise Conflict(decision_sentence(approval))


def refuse_decided(approval: ToolApproval) -> None:
    """Raise Conflict, which says who did what, if somebody has decided; reads the row again."""
    approval.refresh_from_db()
    if not approval.is_open:
        raise Conflict(decision_sentence(approval))


def decision_sentence(approval: ToolApproval) -> str:
    """Return who decided what, for somebody who came too late."""
    names = {"who": approval.decided_by, "what": approval.get_decision_display()}
    if approval.decided_by is None:
        return _("Already decided: %(what)s.") % names
    return _("%(who)s has already decided: %(what)s.") % names


def has_open(run: AgentRun) -> bool:
    """Whether a run still waits for a decision, in the transaction of one."""
    return approval_rows().open().filter(run=run).exists()


def reopen(run: AgentRun) -> None:
    """Ask again what was given up, because the run is tried again."""
    again = Q(decision=Decision.FAIL) | Q(kind=Kind.QUESTION, decision=Decision.EXPIRED)
    asked = approval_rows().filter(again, run=run)
    asked.update(decision="", decided_by=None, decided_at=None, reason="", answer=None)


def awaiting(user: Any, viewer: Viewer) -> list[ToolApproval]:
    """Return the open approvals that a user may decide, oldest first.

    ``viewer`` is the same user, with a tenant. A viewer without a tenant gets the approvals of
    all tenants that ``AGENTIC_DJANGO_APPROVERS`` lets the user decide.
    """
    found = approval_rows().open().select_related("run__owner", "run__session")
    if settings.APPROVERS is None:
        return list(found.visible_to(viewer))
    if viewer.tenant:
        found = found.filter(run__tenant=viewer.tenant)
    return [approval for approval in found[:MAX_CHECKED] if may_decide(user, approval)]


def validated_answer(approval: ToolApproval, answer: Any) -> Any:
    """Return an answer, or edited arguments; raises BadInput for those that do not fit."""
    if approval.options:
        if answer not in approval.options:
            listed = ", ".join(map(str, approval.options))
            raise BadInput(errors={"answer": _("Choose one of: %(these)s.") % {"these": listed}})
        return answer
    if approval.schema is None:
        raise BadInput(errors={"arguments": _("These arguments cannot be changed.")})
    validator = jsonschema.Draft202012Validator(approval.schema)
    wrong = sorted(validator.iter_errors(answer), key=lambda error: list(map(str, error.path)))
    if wrong:
        raise BadInput(errors={_field(error): error.message[:500] for error in wrong[:20]})
    return answer


def _field(error: jsonschema.ValidationError) -> str:
    return ".".join(map(str, error.path)) or "answer"
