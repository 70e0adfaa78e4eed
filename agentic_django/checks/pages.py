"""Checks of the base template and the htmx script of the app's pages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage, register
from django.template import TemplateDoesNotExist
from django.template.loader import get_template

from agentic_django.checks.reporting import TAG, error, is_valid, warning
from agentic_django.conf import PREFIX, Settings, settings


@register(TAG)
def check_htmx(**_: Any) -> Iterator[CheckMessage]:
    """W006: the app that serves the htmx script is not installed."""
    if not apps.is_installed("django_htmx"):
        message = "django_htmx is not in INSTALLED_APPS, so the pages do not find the htmx script."
        hint = "Add 'django_htmx'. It was installed with this app."
        yield warning(6, message, hint)


@register(TAG)
def check_base_template(**_: Any) -> Iterator[CheckMessage]:
    """E011: the base template does not exist."""
    if not is_valid("BASE_TEMPLATE"):
        return
    try:
        get_template(settings.BASE_TEMPLATE)
    except TemplateDoesNotExist as missing:
        hint = (
            "Correct the name. The default, "
            f"{Settings.options()[PREFIX + 'BASE_TEMPLATE'].default!r}, "
            "needs a DjangoTemplates engine with APP_DIRS in TEMPLATES."
        )
        yield error(11, f"{PREFIX}BASE_TEMPLATE: the template {missing} does not exist.", hint)
