"""Decides how often a run is attempted, and how long it waits between attempts."""

from __future__ import annotations

import random

from agentic_django.conf import settings
from agentic_django.models import AgentRun

__all__ = ["backoff", "gives_up", "max_attempts"]

_LONGEST_DELAY = 60.0


_MERCY = 3
"""So many times as often a run may be lost with others of its process as it may be alone."""


def gives_up(run: AgentRun, mode: str) -> bool:
    """Whether a run whose holder is gone fails: its host's own, or one lost too often, always.

    One that was lost with others of its process is hardly the one that ended it.
    """
    fell_with_others = getattr(run, "fell_with_others", False)  # See ``recovery.lost``.
    most = max_attempts(run) * (_MERCY if fell_with_others else 1)
    return mode == "fail" or run.is_inline or run.failures + 1 >= most


def max_attempts(run: AgentRun) -> int:
    """Return how many attempts in a row may come to nothing, for this run."""
    setting = settings.MAX_ATTEMPTS
    by_agent = {"*": setting} if isinstance(setting, int) else setting
    own = run.metadata.get("max_attempts") if isinstance(run.metadata, dict) else None
    if isinstance(own, int) and own > 0:
        return own
    return by_agent.get(run.agent_key) or by_agent.get("*", 4)


def backoff(failures: int) -> float:
    """Return the seconds to wait after so many failures: 1, 2, 4 … 60, each give or take half.

    The spread keeps runs that failed together from coming back together.
    """
    return min(2.0**failures, _LONGEST_DELAY) * random.uniform(0.5, 1.5)  # noqa: S311 - no secret
