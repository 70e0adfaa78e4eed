"""The tag of the app's checks, and the errors and warnings that they return."""

from __future__ import annotations

from django.core import checks

from agentic_django.conf import PREFIX, Settings

__all__ = ["TAG", "error", "is_valid", "warning"]

TAG = "agentic_django"
"""Run these checks alone with ``manage.py check --tag agentic_django``."""


def error(number: int, message: str, hint: str) -> checks.CheckMessage:
    """Return the error ``agentic_django.E<number>``; ``hint`` says how to fix it."""
    return checks.Error(message, hint=hint, id=f"agentic_django.E{number:03}")


def warning(number: int, message: str, hint: str) -> checks.CheckMessage:
    """Return the warning ``agentic_django.W<number>``; ``hint`` says how to fix it."""
    return checks.Warning(message, hint=hint, id=f"agentic_django.W{number:03}")


def is_valid(name: str) -> bool:
    """Whether a setting has a valid value. E001 reports an invalid one, so other checks skip it."""
    return Settings.options()[PREFIX + name].problem() is None
