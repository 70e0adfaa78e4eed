"""Decides approvals: checks the user and the decision, writes it, and resumes the run.

An approval is decided only once, because the write is guarded. Each decision locks the run first.
The last decision that a run waits for requeues the run.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import copy
from typing import Any

import jsonschema
from django.db import transaction
from django.db.models.functions import Now
from django.utils.translation import gettext as _

from agentic_django.conf import settings
from agentic_django.engine import fenced_writes, lifecycle
from agentic_django.engine.approval_requests import approval_event, approval_rows
from agentic_django.engine.events import EventType
from agentic_django.exceptions import BadInput, Conflict, NotAllowed
from agentic_django.models import ToolApproval, database
from agentic_django.permissions import Viewer, may_decide, name_for_owner

__all__ = [
    "answer_question",
    "approve_or_reject",
    "awaiting",
    "decision_sentence",
    "expire",
    "resolve_interrupted_call",
    "validated_answer",
]

MAX_CHECKED = 1000
"""A list of approvals calls ``AGENTIC_DJANGO_APPROVERS`` for at most this many, oldest first."""

Decision = ToolApproval.Decision
Kind = ToolApproval.Kind


def awaiting(user: Any, viewer: Viewer) -> list[ToolApproval]:
    """Return the open approvals that a user may decide, oldest first.

    ``viewer`` is the same user, with a tenant. A viewer without a tenant gets the approvals of
    every tenant for which ``AGENTIC_DJANGO_APPROVERS`` allows the user to decide.
    """
    found = approval_rows().open().select_related("run__owner", "run__session")
    if settings.APPROVERS is None:
        return list(found.visible_to(viewer))
    if viewer.tenant:
        found = found.filter(run__tenant=viewer.tenant)
    return [approval for approval in found[:MAX_CHECKED] if may_decide(user, approval)]


def approve_or_reject(
    approval: ToolApproval,
    *,
    approve: bool,
    by: Any = None,
    reason: str = "",
    arguments: Mapping[str, Any] | None = None,
) -> None:
    """Approve a call, optionally with edited arguments, or reject a call or a question.

    ``by`` is None for the host's own code, which may always decide. Raises BadInput if the decision
    does not fit the approval, NotAllowed if the user may not decide, and Conflict if the approval
    is already decided or its run is not waiting.
    """
    if approve and approval.kind in (Kind.QUESTION, Kind.INTENT):
        raise BadInput(_("This question needs an answer, not an approval."))
    if approval.kind == Kind.INTENT:
        raise BadInput(_("Choose done, repeat or fail for this call."))
    if arguments is not None and not approve:
        raise BadInput(
            errors={"arguments": _("Arguments can only be changed when the call is approved.")}
        )
    edited = None
    if arguments is not None and arguments != approval.arguments:
        edited = validated_answer(approval, arguments)
    decision = Decision.APPROVED if approve else Decision.REJECTED
    _refuse_unless_allowed(approval, by, edited)
    _decide(approval, decision, by=by, reason=reason, answer=edited)


def answer_question(approval: ToolApproval, answer: Any, *, by: Any = None) -> None:
    """Answer a question of a run's own code. Raises the errors of ``approve_or_reject``."""
    if approval.kind != Kind.QUESTION:
        raise BadInput(_("This is not a question."))
    valid = validated_answer(approval, answer)
    _refuse_unless_allowed(approval, by)
    _decide(approval, Decision.ANSWERED, by=by, answer=valid)


def resolve_interrupted_call(
    approval: ToolApproval, outcome: str, *, by: Any = None, reason: str = "", result: Any = None
) -> None:
    """Resolve an interrupted call that may have happened and must not be repeated automatically.

    ``outcome`` is ``done`` (with the call's ``result``), ``repeat`` or ``fail``. Raises the errors
    of ``approve_or_reject``.
    """
    if approval.kind != Kind.INTENT:
        raise BadInput(_("This is not an interrupted call."))
    if outcome not in (Decision.DONE, Decision.REPEAT, Decision.FAIL):
        raise BadInput(errors={"decision": _("Choose one of: done, repeat, fail.")})
    _refuse_unless_allowed(approval, by)
    answer = result if outcome == Decision.DONE else None
    _decide(approval, outcome, by=by, reason=reason, answer=answer)


def expire(approval: ToolApproval) -> None:
    """Reject an approval that nobody decided in time, so that its run continues."""
    _decide(approval, Decision.EXPIRED)


def validated_answer(approval: ToolApproval, answer: Any) -> Any:
    """Return a valid answer, or valid edited arguments. Raises BadInput if they do not fit."""
    if approval.options:
        if answer not in approval.options:
            listed = ", ".join(map(str, approval.options))
            raise BadInput(errors={"answer": _("Choose one of: %(these)s.") % {"these": listed}})
        return answer
    if approval.schema is None:
        raise BadInput(errors={"arguments": _("These arguments cannot be changed.")})
    validator = jsonschema.Draft202012Validator(approval.schema)
    found = sorted(validator.iter_errors(answer), key=lambda error: list(map(str, error.path)))
    if found:
        fields = {".".join(map(str, each.path)) or "answer": each for each in found[:20]}
        raise BadInput(errors={name: each.message[:500] for name, each in fields.items()})
    return answer


def _refuse_unless_allowed(approval: ToolApproval, by: Any, edited: Any = None) -> None:
    """Raise NotAllowed if a user may not decide the request, or may not decide the edited one."""
    forms = [approval]
    if approval.is_editable and edited is not None:
        forms.append(copy(approval))
        forms[-1].arguments = edited
    if by is not None and not all(may_decide(by, form) for form in forms):
        raise NotAllowed(_("You do not have permission to decide this."))


def _decide(
    approval: ToolApproval, decision: str, *, by: Any = None, reason: str = "", answer: Any = None
) -> None:
    """Write a decision, and resume the run if it waits for no other decision.

    Raises Conflict if the approval is already decided, or if its run is not waiting.
    """
    run = approval.run
    with transaction.atomic(using=database()):
        if not fenced_writes.lock_waiting(run):  # Other decisions about this run wait here.
            _refuse_if_decided(approval)
            fenced_writes.refuse_unless_waiting(run)
        is_written = (
            approval_rows()
            .filter(pk=approval.pk, decision="")
            .update(
                decision=decision, decided_by=by, decided_at=Now(), reason=reason, answer=answer
            )
        )
        if not is_written:
            _refuse_if_decided(approval)
        approval.refresh_from_db()
        name = name_for_owner(by, run)
        decided = approval_event(
            EventType.APPROVAL_DECIDED, approval, decision=decision, by=name, reason=reason
        )
        if approval_rows().open().filter(run=run).exists():
            fenced_writes.append_while_waiting(run, [decided])
        else:
            lifecycle.resume(run, [decided])


def _refuse_if_decided(approval: ToolApproval) -> None:
    """Reload an approval. Raises Conflict, which names the decision, if it is already decided."""
    approval.refresh_from_db()
    if not approval.is_open:
        raise Conflict(decision_sentence(approval))


def decision_sentence(approval: ToolApproval) -> str:
    """Return the decision and the person who decided, as a sentence."""
    names = {"who": approval.decided_by, "what": approval.get_decision_display()}
    if approval.decided_by is None:
        return _("Already decided: %(what)s.") % names
    return _("%(who)s has already decided: %(what)s.") % names
