"""The database alias of the app's tables, and the base class of rows that have an owner."""

from __future__ import annotations

from typing import Any

from django.conf import settings as django_settings
from django.db import models
from django.utils.translation import gettext_lazy as _

from agentic_django.conf import settings
from agentic_django.models.fields import OwnerKey
from agentic_django.permissions import principal_of

__all__ = ["OwnedModel", "database"]


def database() -> str:
    """Return the alias of the database that holds all rows of the app."""
    return settings.DATABASE


class OwnedModel(models.Model):
    """A row that belongs to a user, a tenant, or both."""

    owner = OwnerKey(
        django_settings.AUTH_USER_MODEL,
        on_delete=models.DB_CASCADE,
        null=True,
        blank=True,
        related_name="+",
        verbose_name=_("owner"),
    )
    tenant = models.CharField(_("tenant"), max_length=64, blank=True, default="")
    principal = models.CharField(_("principal"), max_length=80, blank=True, editable=False)

    class Meta:
        abstract = True

    def save(self, **kwargs: Any) -> None:
        """Save the row. Before the first save, set the columns that follow from others."""
        if self._state.adding:
            self.set_derived_fields()
        super().save(**kwargs)

    def set_derived_fields(self) -> None:
        """Set the columns that follow from other columns. Called before the first save."""
        self.principal = self.principal or principal_of(self.owner)
