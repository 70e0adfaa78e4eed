"""Tables, constraints and querysets.

Models do not change a run's status; ``agentic_django.engine`` does.
"""

from agentic_django.models.approvals import ToolApproval
from agentic_django.models.base import database
from agentic_django.models.checkpoints import StepCheckpoint
from agentic_django.models.choices import ACTIVE, FINISHED, Visibility
from agentic_django.models.coordination import RateWindow, RunSlot, SweepMark
from agentic_django.models.runs import HOST_FIELDS, AgentDraft, AgentEvent, AgentRun
from agentic_django.models.sessions import (
    SESSION_KEY,
    AgentSession,
    AgentSessionItem,
    check_session_key,
    new_session_key,
)

__all__ = [
    "ACTIVE",
    "FINISHED",
    "HOST_FIELDS",
    "SESSION_KEY",
    "AgentDraft",
    "AgentEvent",
    "AgentRun",
    "AgentSession",
    "AgentSessionItem",
    "RateWindow",
    "RunSlot",
    "StepCheckpoint",
    "SweepMark",
    "ToolApproval",
    "Visibility",
    "check_session_key",
    "database",
    "new_session_key",
]
