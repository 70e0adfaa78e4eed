"""Django signals of the app, sent after the commit of the change, and the log messages.

============================  ==================================================
Signal                        Keyword arguments (``sender`` is the row's model)
============================  ==================================================
``agent_session_created``     ``session``
``agent_run_started``         ``run``
``agent_run_completed``       ``run``
``agent_run_failed``          ``run``, ``error`` (the exception, or None)
``agent_run_cancelled``       ``run``
``agent_run_event``           ``run, event, sequence, event_type, payload``
``agent_approval_requested``  ``run``, ``approval`` (the ToolApproval)
============================  ==================================================

Receivers are called with ``send_robust``: an error of a receiver is logged and has no effect.
``agent_run_failed`` is also sent for a run that timed out.
"""

from __future__ import annotations

import logging
from typing import Any

from django.dispatch import Signal, receiver

__all__ = [
    "agent_approval_requested",
    "agent_run_cancelled",
    "agent_run_completed",
    "agent_run_event",
    "agent_run_failed",
    "agent_run_started",
    "agent_session_created",
]

logger = logging.getLogger("agentic_django")

agent_session_created = Signal()
agent_run_started = Signal()
agent_run_completed = Signal()
agent_run_failed = Signal()
agent_run_cancelled = Signal()
agent_run_event = Signal()
agent_approval_requested = Signal()


def announce(signal: Signal, sender: type, **kwargs: Any) -> None:
    """Send a signal to every receiver; log receivers that raise an error or call ``exit()``."""
    try:
        outcomes = signal.send_robust(sender, **kwargs)
    except SystemExit as error:  # The change is committed, so the process must not end here.
        logger.error("A receiver called exit()", exc_info=error)
        return
    for called, outcome in outcomes:
        if isinstance(outcome, Exception):
            logger.error("Receiver %r raised %r", called, outcome, exc_info=outcome)


@receiver(agent_run_started, dispatch_uid="agentic_django.log")
def _log_started(run: Any, **_: Any) -> None:
    logger.info("Run %s started, attempt %s", run.pk, run.attempt)


@receiver(agent_run_completed, dispatch_uid="agentic_django.log")
def _log_completed(run: Any, **_: Any) -> None:
    logger.info("Run %s completed", run.pk)


@receiver(agent_run_failed, dispatch_uid="agentic_django.log")
def _log_failed(run: Any, error: BaseException | None = None, **_: Any) -> None:
    logger.warning("Run %s ended as %s: %s", run.pk, run.status, run.error_code, exc_info=error)


@receiver(agent_run_cancelled, dispatch_uid="agentic_django.log")
def _log_cancelled(run: Any, **_: Any) -> None:
    logger.info("Run %s cancelled", run.pk)
