"""Chooses who decides the support agent's approvals, for ``AGENTIC_DJANGO_APPROVERS``."""

from __future__ import annotations

from decimal import Decimal, InvalidOperation
from typing import Any

from agentic_django.models import ToolApproval

LARGE = Decimal(100)
"""Refunds above this, in EUR, are for staff to decide."""


def may_decide(user: Any, approval: ToolApproval) -> bool:
    """Let staff decide about large refunds, and clerks about all else that their own runs ask."""
    if approval.tool == "refund_order" and _is_large(approval.arguments):
        return bool(user.is_staff)
    return bool(user == approval.run.owner)


def _is_large(arguments: Any) -> bool:
    try:
        return not Decimal(arguments["amount"]) <= LARGE
    except (InvalidOperation, LookupError, TypeError):  # The tool refuses it; staff may see it.
        return True
