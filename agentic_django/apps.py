"""The application's configuration."""

from django.apps import AppConfig
from django.utils.translation import gettext_lazy as _


class AgenticDjangoConfig(AppConfig):
    """Installs the app: ``INSTALLED_APPS = [..., "agentic_django"]``."""

    name = "agentic_django"
    label = "agentic_django"
    verbose_name = _("Agents")
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Register the system checks and the task that executes runs."""
        from agentic_django import checks, tasks  # noqa: F401, PLC0415 - registration is the effect
