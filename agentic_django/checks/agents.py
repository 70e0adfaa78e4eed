"""Checks of the registered agents and of the default agent."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, register

from agentic_django import registry
from agentic_django.checks.reporting import TAG, error, is_valid, warning
from agentic_django.conf import PREFIX, settings
from agentic_django.exceptions import BadSetting

_REGISTRY_HINT = (
    "Name callables that take no arguments and return {key: factory}, "
    "for example 'shop.agents.registry' or 'shop.agents:registry'."
)


@register(TAG)
def check_registry(**_: Any) -> Iterator[CheckMessage]:
    """E002, E003: the registry cannot be loaded, or has a key twice."""
    if not is_valid("AGENT_REGISTRY"):
        return
    try:
        duplicates = registry.duplicates()
    except BadSetting as problem:
        yield error(2, f"{PREFIX}AGENT_REGISTRY: {problem}", _REGISTRY_HINT)
        return
    for key in duplicates:
        hint = "Rename or remove one of them. Until then, only the first one is used."
        yield error(3, f"The agent key {key!r} is registered more than once.", hint)


@register(TAG)
def check_default_agent(**_: Any) -> Iterator[CheckMessage]:
    """E004, W002, W003: no agent is registered, or none under the default key."""
    if not is_valid("AGENT_REGISTRY"):
        return
    try:
        keys = registry.keys()
    except BadSetting:  # E002 reports it.
        return
    name = f"{PREFIX}DEFAULT_AGENT_KEY"
    if not keys:
        hint = f"Set {PREFIX}AGENT_REGISTRY. {_REGISTRY_HINT}"
        yield warning(2, "No agent is registered.", hint)
    elif not is_valid("DEFAULT_AGENT_KEY") or settings.DEFAULT_AGENT_KEY in keys:
        return
    elif hasattr(django_settings, name):
        message = f"{name} is {settings.DEFAULT_AGENT_KEY!r}, which is not registered."
        yield error(4, message, f"Set it to one of: {', '.join(keys)}.")
    else:
        message = f"No agent is registered as {settings.DEFAULT_AGENT_KEY!r}, the default key."
        hint = f"Set {name} to one of: {', '.join(keys)}. Or name the agent of each run."
        yield warning(3, message, hint)
