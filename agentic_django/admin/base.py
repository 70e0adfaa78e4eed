"""Base classes of the admin pages. Rows are read-only, and stored values are shown as text."""

from __future__ import annotations

import json
from collections import Counter
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

from agentic_django.exceptions import AgenticError
from agentic_django.models import AgentRun

if TYPE_CHECKING:  # Only the type checker's view of these classes takes parameters.
    _Admin = admin.ModelAdmin[Any]
    _Inline = admin.TabularInline[Any, Any]
else:
    _Admin, _Inline = admin.ModelAdmin, admin.TabularInline


SHOWN_ROWS = 200
"""The number of related rows that a page shows."""

_SHOWN_CHARACTERS = 20_000


def pretty(value: Any) -> str:
    """Return a stored value as HTML: text, or indented JSON. Long values are shortened."""
    text = value if isinstance(value, str) else json.dumps(value, indent=2, ensure_ascii=False)
    # A model may write one half of a surrogate pair, which UTF-8 cannot encode.
    text = text.encode("utf-8", "backslashreplace").decode()
    if len(text) > _SHOWN_CHARACTERS:
        more = len(text) - _SHOWN_CHARACTERS
        note = ngettext("… %d more character", "… %d more characters", more) % more
        text = f"{text[:_SHOWN_CHARACTERS]}\n{note}"
    return format_html('<pre class="agentic-value">{}</pre>', text)


def shown(name: str, label: Any) -> Callable[..., str]:
    """Return a column that shows a field's stored value."""

    @admin.display(description=label, empty_value="-")
    def show(_admin: Any, row: Model) -> str:
        value = getattr(row, name)
        return "-" if value in (None, "", {}, []) else pretty(value)

    return show


def link(row: Model | None, label: Any = None) -> str:
    """Return a link to the page of a row, or a dash for None."""
    if row is None:
        return "-"
    url = reverse(f"admin:agentic_django_{row._meta.model_name}_change", args=[row.pk])
    return format_html('<a href="{}">{}</a>', url, label or row)


def list_link(model: type[Model], label: str, **lookups: Any) -> str:
    """Return a link to the list of the rows that match the lookups."""
    url = reverse(f"admin:agentic_django_{model._meta.model_name}_changelist", query=lookups)
    return format_html('<a href="{}">{}</a>', url, label)


def apply_to_each[M: Model](
    rows: Iterable[M], action: Callable[[M], Any]
) -> tuple[int, Counter[str]]:
    """Apply an action to each row. Return how often it succeeded, and its errors by message."""
    succeeded, errors = 0, Counter[str]()
    for row in rows:
        try:
            action(row)
            succeeded += 1
        except AgenticError as error:
            errors[str(error)] += 1
    return succeeded, errors


def owner_search() -> str:
    """Return the lookup that finds rows by the name of their owner."""
    return f"owner__{get_user_model().USERNAME_FIELD}"


class ReadOnly:
    """Forbids adding and changing rows."""

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: the services create rows."""
        return False

    def has_change_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: the services change rows."""
        return False

    class Media:
        """The style sheet for stored values."""

        css = {"all": ("agentic_django/admin.css",)}  # noqa: RUF012 - Django's own spelling


class RelatedRows(ReadOnly, _Inline):
    """The last related rows on the page of a row."""

    extra = 0
    can_delete = False
    show_change_link = False

    def has_delete_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        """Return False: related rows are deleted with their row."""
        return False


class RecordAdmin(ReadOnly, _Admin):
    """The base class of the admin of sessions, runs, events and approvals."""

    date_hierarchy = "created_at"
    show_full_result_count = False
    list_per_page = 50

    def get_fields(self, request: HttpRequest, obj: Any = None) -> Any:
        """Return the fields of the page, all of them read-only."""
        return self.get_readonly_fields(request, obj)

    def get_deleted_objects(self, objs: Any, request: HttpRequest) -> Any:
        """Return the rows that would be deleted; unfinished runs are protected.

        Related events, items and recorded calls are not listed, because there may be many.
        """
        rows = list(objs)
        names = {str(self.opts.verbose_name_plural): len(rows)}
        denied = [row for row in rows if not self.has_delete_permission(request, row)]
        needed = {str(self.opts.verbose_name)} if denied else set()
        sentence = _("{} is not finished. Stop it first.")
        protected = [format_html(str(sentence), link(run)) for run in self.unfinished_runs(rows)]
        return [link(row) for row in rows], names, needed, protected

    def unfinished_runs(self, rows: Iterable[Any]) -> Iterable[AgentRun]:
        """Return the unfinished runs that would be deleted with these rows."""
        return ()


class OwnerFilter(admin.SimpleListFilter):
    """Filters by owner. Offers the owners of the newest rows, and the chosen owner."""

    title = _("owner")
    parameter_name = "owner"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Iterable[tuple[str, Any]]:
        """Return the choices, sorted by name."""
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
