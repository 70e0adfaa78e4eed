"""What the admin's pages have in common: nothing can be edited, values are shown as text."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.contrib.auth import get_user_model
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.urls import reverse
from django.utils.html import format_html
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from agentic_django.models import AgentRun

if TYPE_CHECKING:  # Only the type checker's view of these classes takes parameters.
    _Admin = admin.ModelAdmin[Any]
    _Inline = admin.TabularInline[Any, Any]
else:
    _Admin, _Inline = admin.ModelAdmin, admin.TabularInline


SHOWN_ROWS = 200
"""So many of the rows that belong to another are shown with it."""

_SHOWN_CHARACTERS = 20_000


def pretty(value: Any) -> str:
    """Return a stored value as indented JSON (text as it is), cut where it gets long."""
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
    # What a model wrote may hold half a character, which cannot be sent as UTF-8.
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) > _SHOWN_CHARACTERS:
        more = len(text) - _SHOWN_CHARACTERS
        told = ngettext("… %d more character", "… %d more characters", more) % more
        text = f"{text[:_SHOWN_CHARACTERS]}\n{told}"
    return format_html('<pre class="agentic-value">{}</pre>', text)


def shown(name: str, label: Any) -> Callable[..., str]:
    """Return a column that shows a field's stored value."""

    @admin.display(description=label, empty_value="-")
    def show(_admin: Any, row: Model) -> str:
        value = getattr(row, name)
        return "-" if value in (None, "", {}, []) else pretty(value)

    return show


def link(row: Model | None, label: Any = None) -> str:
    """Return a link to a row's page, or a dash if there is no row."""
    if row is None:
        return "-"
    url = reverse(f"admin:agentic_django_{row._meta.model_name}_change", args=[row.pk])
    return format_html('<a href="{}">{}</a>', url, label or row)


def list_link(model: type[Model], label: str, **only: Any) -> str:
    """Return a link to the list of those rows that a lookup leaves."""
    url = reverse(f"admin:agentic_django_{model._meta.model_name}_changelist", query=only)
    return format_html('<a href="{}">{}</a>', url, label)


def owner_search() -> str:
    """Return the lookup that finds rows by their owner's name."""
    return f"owner__{get_user_model().USERNAME_FIELD}"


class ReadOnly:
    """Rows are the record of what happened: nobody adds or changes them by hand."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse: sessions and runs are made through the services."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse: a run changes through its verbs."""
        return False

    class Media:
        """How stored values look."""

        css = {"all": ("agentic_django/admin.css",)}  # noqa: RUF012 - Django's own spelling


class Rows(ReadOnly, _Inline):
    """The last rows that belong to the one shown."""

    extra = 0
    can_delete = False
    show_change_link = False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Refuse: they go with the row they belong to."""
        return False


class Record(ReadOnly, _Admin):
    """What the pages of sessions, runs and events have in common."""

    date_hierarchy = "created_at"
    show_full_result_count = False
    list_per_page = 50

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Return all that the page shows; nothing of it can be edited."""
        return self.get_readonly_fields(request, obj)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Return what would be deleted, and protect what a worker may hold.

        Events, items and recorded calls go along without being listed: there may be very many,
        and nobody may delete them on their own.
        """
        rows = list(objs)
        names = {str(self.opts.verbose_name_plural): len(rows)}
        denied = [row for row in rows if not self.has_delete_permission(request, row)]
        needed = {str(self.opts.verbose_name)} if denied else set()
        sentence = _("{} is not finished. Stop it first.")
        busy = [format_html(str(sentence), link(run)) for run in self.busy(rows)]
        return [link(row) for row in rows], names, needed, busy

    def busy(self, rows: Iterable[Any]) -> Iterable[AgentRun]:
        """Return the unfinished runs that would be deleted with these rows."""
        return ()


class OwnerFilter(admin.SimpleListFilter):
    """Whose rows: those who own the newest, and whoever is chosen by the link of another row."""

    title = _("owner")
    parameter_name = "owner"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        """Return some owners by name."""
        newest = model_admin.model.objects.exclude(owner=None).order_by(*model_admin.ordering)
        keys = set(newest.values_list("owner", flat=True)[:SHOWN_ROWS])
        chosen = request.GET.get(self.parameter_name, "")
        owners = get_user_model()._default_manager.filter(pk__in=keys)
        names = sorted((str(owner), str(owner.pk)) for owner in owners)
        known = [(key, name) for name, key in names]
        return known if not chosen or chosen in dict(known) else [*known, (chosen, chosen)]

    def queryset(self, request: HttpRequest, queryset: QuerySet[Any]) -> QuerySet[Any]:
        """Return the rows of the chosen owner."""
        key = self.value()
        return queryset.filter(principal=f"user:{key}") if key else queryset
