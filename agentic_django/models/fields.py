"""Model fields of our own."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

from django.core.checks import CheckMessage
from django.db import models

from agentic_django import serialization

__all__ = ["JSONTextField", "OwnerKey", "new_id"]


def new_id() -> uuid.UUID:
    """Return a fresh primary key: a UUID 7, sorted by time, where Python has it (3.14)."""
    return getattr(uuid, "uuid7", uuid.uuid4)()


if TYPE_CHECKING:
    Text = models.TextField[Any, Any]
else:
    Text = models.TextField


class JSONTextField(Text):
    """JSON kept as ASCII text.

    The JSON types of databases refuse U+0000 and lone surrogates, reorder keys and rewrite
    numbers; text keeps what was written. ``None`` reads and writes as SQL NULL.
    """

    _pyi_private_set_type: Any
    _pyi_private_get_type: Any
    _pyi_lookup_exact_type: Any

    def from_db_value(self, value: str | None, expression: Any, connection: Any) -> Any:
        """Decode the stored text."""
        return None if value is None else serialization.loads(value)

    def get_prep_value(self, value: Any) -> Any:
        """Encode a value; raises NotSerializable for what JSON cannot hold."""
        if value is None or hasattr(value, "resolve_expression"):
            return value
        return serialization.dumps(value)

    def value_to_string(self, obj: models.Model) -> str:
        """Return the text that ``dumpdata`` writes."""
        return serialization.dumps(self.value_from_object(obj))

    def to_python(self, value: Any) -> Any:
        """Return the value that ``loaddata`` and forms give, decoded if it is text."""
        return serialization.loads(value) if isinstance(value, str) else value


class OwnerKey(models.ForeignKey[Any, Any]):
    """A foreign key to the user model, deleted by the database with the user.

    Django's check fields.E323 wants one kind of ``on_delete`` along a chain. A host's user
    model may itself point elsewhere with a Python-level rule; a database-level rule below a
    Python-level one is sound, so that finding is dropped here.
    """

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """Run the field's checks, less fields.E323."""
        return [finding for finding in super().check(**kwargs) if finding.id != "fields.E323"]
