"""Checks of the values and names of the settings, and of the callables and options they name."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import import_module
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, register

from agentic_django import validation
from agentic_django.checks.reporting import TAG, error, is_valid, warning
from agentic_django.conf import PREFIX, Settings, load, settings
from agentic_django.exceptions import BadSetting, nearest_name, suggestion
from agentic_django.openai_agents import input_items, runner

_HOOKS = ("AGENT_ACCESS", "APPROVERS", "CONTEXT_FACTORY", "CLASSIFY_ERROR", "COMPACT_HISTORY")


@register(TAG)
def check_values(**_: Any) -> Iterator[CheckMessage]:
    """E001: a setting has an invalid value."""
    for name, option in Settings.options().items():
        if problem := option.problem():
            yield error(1, f"{name} is invalid: {problem}.", f"Expected: {option.hint}")


@register(TAG)
def check_names(**_: Any) -> Iterator[CheckMessage]:
    """W001: the app does not have a setting of this name."""
    known = Settings.options()
    suffixes = [name.removeprefix(PREFIX) for name in known]  # The prefix makes all names similar.
    for name in dir(django_settings):
        if not name.startswith(PREFIX) or name in known:
            continue
        near = nearest_name(name.removeprefix(PREFIX), suffixes)
        hint = f"Remove it. The settings are: {', '.join(known)}."
        if near:
            hint = f"Did you mean {PREFIX}{near}?"
        yield warning(1, f"Unknown setting {name}.", hint)


@register(TAG)
def check_hooks(**_: Any) -> Iterator[CheckMessage]:
    """E005: a setting names a callable that does not exist."""
    for name, option in Settings.options().items():
        if name.removeprefix(PREFIX) not in _HOOKS or option.problem():
            continue
        hook = getattr(django_settings, name, option.default)
        try:
            if hook is not None:
                load(hook)
        except BadSetting as reason:
            yield error(5, f"{name}: {reason}", option.hint)


@register(TAG)
def check_step_modules(**_: Any) -> Iterator[CheckMessage]:
    """E012: the setting for steps names a module that cannot be imported."""
    if not is_valid("STEP_MODULES"):
        return
    for module in settings.STEP_MODULES:
        try:
            import_module(module)
        except (ImportError, ValueError, TypeError) as reason:  # As for "" and ".steps".
            message = f"{PREFIX}STEP_MODULES has {module!r}, which cannot be imported: {reason}."
            yield error(12, message, "Use the dotted path of a module, not of a function in it.")


@register(TAG)
def check_run_options(**_: Any) -> Iterator[CheckMessage]:
    """E013: the default run options have an option that the Agents SDK does not know."""
    if not is_valid("DEFAULT_RUN_OPTIONS") or not settings.DEFAULT_RUN_OPTIONS:
        return
    known = runner.host_options()
    for name in settings.DEFAULT_RUN_OPTIONS:
        if name not in known:
            message = f"{PREFIX}DEFAULT_RUN_OPTIONS has the unknown run option {name!r}."
            yield error(13, message, suggestion(str(name), known))


@register(TAG)
def check_client_options(**_: Any) -> Iterator[CheckMessage]:
    """E010: the options for clients name an unknown run option."""
    if not is_valid("CLIENT_RUN_OPTIONS"):
        return
    known = validation.RunOptions.model_fields
    for name in settings.CLIENT_RUN_OPTIONS:
        if name not in known:
            message = f"{PREFIX}CLIENT_RUN_OPTIONS has the unknown run option {name!r}."
            yield error(10, message, suggestion(name, known))


@register(TAG)
def check_client_items(**_: Any) -> Iterator[CheckMessage]:
    """E015: the input items for clients name an unknown kind."""
    if not is_valid("CLIENT_INPUT_ITEMS"):
        return
    known = (*input_items.KINDS, input_items.FILE_ID)
    for name in settings.CLIENT_INPUT_ITEMS:
        if name not in known:
            message = f"{PREFIX}CLIENT_INPUT_ITEMS has the unknown kind of item {name!r}."
            yield error(15, message, suggestion(name, known))
