"""The words for where a run stands, and for who may read an event."""

from django.db import models
from django.utils.translation import gettext_lazy as _

__all__ = ["ACTIVE", "FINISHED", "Status", "Visibility"]


class Status(models.TextChoices):
    """Where a run stands, each state with its exit."""

    PENDING = "pending", _("In line")  # A worker's claim starts it.
    RUNNING = "running", _("Running")  # Its attempt ends it, or its lease does.
    WAITING = "waiting", _("Waiting")  # Parked for a person; a decision requeues it.
    COMPLETED = "completed", _("Completed")  # For good.
    FAILED = "failed", _("Failed")  # A person may retry it.
    CANCELLED = "cancelled", _("Stopped")  # A person may retry it.
    TIMED_OUT = "timed_out", _("Timed out")  # A person may retry it.


ACTIVE = (Status.PENDING, Status.RUNNING, Status.WAITING)
"""A run that is yet to end."""

FINISHED = (Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.TIMED_OUT)
"""A run that has ended; it may still be retried."""


class Visibility(models.TextChoices):
    """Who may read an event."""

    USER = "user", _("User")
    DEBUG = "debug", _("Debug")
    INTERNAL = "internal", _("Internal")
