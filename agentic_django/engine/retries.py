"""Decides how often a run is attempted, and how long it waits between attempts.

``run.failures`` counts consecutive attempts that recorded nothing new.
``openai_agents.error_classification`` decides by the error whether a run is retried at all.
"""

from __future__ import annotations

import random

from agentic_django.conf import settings
from agentic_django.models import AgentRun

__all__ = ["backoff", "fails_when_orphaned", "is_last_attempt", "max_attempts"]

_DEFAULT_ATTEMPTS = 4
_LONGEST_DELAY = 60.0
_SHARED_LOSS_FACTOR = 3


def max_attempts(run: AgentRun) -> int:
    """Return how many consecutive attempts may fail, from the run's metadata or the setting."""
    own = run.metadata.get("max_attempts") if isinstance(run.metadata, dict) else None
    if isinstance(own, int) and own > 0:
        return own
    setting = settings.MAX_ATTEMPTS
    by_agent = {"*": setting} if isinstance(setting, int) else setting
    return by_agent.get(run.agent_key) or by_agent.get("*", _DEFAULT_ATTEMPTS)


def is_last_attempt(run: AgentRun) -> bool:
    """Whether the run fails if this attempt fails."""
    return run.failures + 1 >= max_attempts(run)


def fails_when_orphaned(run: AgentRun, *, lost_with_others: bool) -> bool:
    """Whether a run whose worker died fails instead of being requeued.

    An inline run fails, because only its host can resume it. Any other run fails at its last
    attempt. If the worker died with several runs, each has three times as many attempts, because it
    probably did not cause every crash.
    """
    factor = _SHARED_LOSS_FACTOR if lost_with_others else 1
    return run.is_inline or run.failures + 1 >= max_attempts(run) * factor


def backoff(failures: int) -> float:
    """Return the seconds to wait after this many failures: 1, 2, 4 … 60, with ±50 % jitter.

    The jitter keeps runs that failed together from being retried together.
    """
    return min(2.0**failures, _LONGEST_DELAY) * random.uniform(0.5, 1.5)  # noqa: S311 - not a secret
