"""The reports' app configuration."""

from django.apps import AppConfig


class ReportsConfig(AppConfig):
    """Installs the reports: ``INSTALLED_APPS = [..., "example.reports"]``."""

    name = "example.reports"
    label = "reports"
    verbose_name = "Reports"
    default_auto_field = "django.db.models.BigAutoField"
