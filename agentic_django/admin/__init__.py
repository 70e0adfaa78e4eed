"""The record of sessions and runs for operators: read, stop, try again, delete; never edit."""

from agentic_django.admin.approvals import ApprovalAdmin
from agentic_django.admin.events import EventAdmin
from agentic_django.admin.runs import RunAdmin
from agentic_django.admin.sessions import SessionAdmin

__all__ = ["ApprovalAdmin", "EventAdmin", "RunAdmin", "SessionAdmin"]
