"""Functions that all writers of a run's row share: its table, its holder, its signals."""

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
    """Return the name of this process among those that hold runs."""
    return f"{socket.gethostname()}:{os.getpid()}"


def run_rows() -> RunQuerySet:
    """Return the runs, in the database that holds them."""
    return AgentRun.objects.using(database())


def send_signal_on_commit(signal: Any, run: AgentRun, **kwargs: Any) -> None:
    """Send a signal about a run once the transaction is committed."""
    send_it = partial(signals.announce, signal, AgentRun, run=run, **kwargs)
    transaction.on_commit(send_it, using=database(), robust=True)
