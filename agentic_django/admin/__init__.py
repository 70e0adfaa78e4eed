"""The admin of sessions, runs, events and approvals: view, cancel, retry, decide, delete.

No row can be edited: runs change only through the services.
"""

from agentic_django.admin.approvals import ApprovalAdmin
from agentic_django.admin.events import EventAdmin
from agentic_django.admin.runs import RunAdmin
from agentic_django.admin.sessions import SessionAdmin

__all__ = ["ApprovalAdmin", "EventAdmin", "RunAdmin", "SessionAdmin"]
