"""The shop's app configuration."""

from django.apps import AppConfig


class ShopConfig(AppConfig):
    """Installs the shop: ``INSTALLED_APPS = [..., "example.shop"]``."""

    name = "example.shop"
    label = "shop"
    verbose_name = "Shop"
    default_auto_field = "django.db.models.BigAutoField"
