"""Functions that all writers of a run's row share: its queryset, its holder, its signals."""

from __future__ import annotations

import os
import socket
from functools import partial
from typing import Any

from django.db import transaction

from agentic_django import signals
from agentic_django.models import AgentRun, database
from agentic_django.models.querysets import RunQuerySet

__all__ = ["process_name", "run_rows", "send_signal_on_commit"]


def process_name() -> str:
    """Return the name under which this process holds runs."""
    return f"{socket.gethostname()}:{os.getpid()}"


def run_rows() -> RunQuerySet:
    """Return a queryset of the runs in the app's database."""
    return AgentRun.objects.using(database())


def send_signal_on_commit(signal: Any, run: AgentRun, **kwargs: Any) -> None:
    """Send a signal about a run after the transaction has committed."""
    send_it = partial(signals.announce, signal, AgentRun, run=run, **kwargs)
    transaction.on_commit(send_it, using=database(), robust=True)
