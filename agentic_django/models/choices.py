"""The statuses of a run, and the visibilities of an event."""

from django.db import models
from django.utils.translation import gettext_lazy as _

__all__ = ["ACTIVE", "FINISHED", "Status", "Visibility"]


class Status(models.TextChoices):
    """The status of a run."""

    PENDING = "pending", _("Queued")  # A worker's claim starts the run.
    RUNNING = "running", _("Running")  # The attempt ends the run, or its lease expires.
    WAITING = "waiting", _("Waiting")  # Waits for a person. The decision requeues it.
    COMPLETED = "completed", _("Completed")  # Final.
    FAILED = "failed", _("Failed")  # A person may retry it.
    CANCELLED = "cancelled", _("Stopped")  # A person may retry it.
    TIMED_OUT = "timed_out", _("Timed out")  # A person may retry it.


ACTIVE = (Status.PENDING, Status.RUNNING, Status.WAITING)
"""The statuses of a run that has not ended."""

FINISHED = (Status.COMPLETED, Status.FAILED, Status.CANCELLED, Status.TIMED_OUT)
"""The statuses of a run that has ended."""


class Visibility(models.TextChoices):
    """The readers of an event."""

    USER = "user", _("User")
    DEBUG = "debug", _("Debug")
    INTERNAL = "internal", _("Internal")
