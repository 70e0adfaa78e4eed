"""Model fields for JSON stored as text and for the owner, and the default primary key."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from django.core.checks import CheckMessage
from django.db import models

from agentic_django import serialization

__all__ = ["JSONTextField", "OwnerKey", "column_text", "new_id"]


def new_id() -> uuid.UUID:
    """Return a new primary key: a UUID 7, which sorts by time, from Python 3.14 on."""
    return getattr(uuid, "uuid7", uuid.uuid4)()


def column_text(model: type[models.Model], column: str, text: str) -> str:
    """Return text as a column can hold it: cut to its length, without unstorable characters."""
    length = getattr(model._meta.get_field(column), "max_length", None)
    return serialization.printable(text)[:length]


if TYPE_CHECKING:
    Text = models.TextField[Any, Any]
else:
    Text = models.TextField


class JSONTextField(Text):
    """JSON stored as ASCII text, so that each value reads as it was written.

    The JSON types of databases reject U+0000 and lone surrogates, reorder keys and rewrite
    numbers. ``None`` is stored as SQL NULL.
    """

    _pyi_private_set_type: Any
    _pyi_private_get_type: Any
    _pyi_lookup_exact_type: Any

    def from_db_value(self, value: str | None, expression: Any, connection: Any) -> Any:
        """Decode the stored text."""
        return None if value is None else serialization.loads(value)

    def get_prep_value(self, value: Any) -> Any:
        """Encode a value. Raises NotSerializable for values that JSON cannot represent."""
        if value is None or hasattr(value, "resolve_expression"):
            return value
        return serialization.dumps(value)

    def value_to_string(self, obj: models.Model) -> str:
        """Return the text that ``dumpdata`` writes."""
        return serialization.dumps(self.value_from_object(obj))

    def to_python(self, value: Any) -> Any:
        """Decode the text that ``loaddata`` and forms pass; return other values unchanged."""
        return serialization.loads(value) if isinstance(value, str) else value


class OwnerKey(models.ForeignKey[Any, Any]):
    """A foreign key to the user model, deleted by the database with the user.

    Django's check fields.E323 requires one kind of ``on_delete`` along a chain of keys. The
    host's user model may have a key with a Python-level rule. A database-level rule below a
    Python-level rule is safe, so this field omits that message.
    """

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Run the field's checks without fields.E323."""
        return [finding for finding in super().check(**kwargs) if finding.id != "fields.E323"]
