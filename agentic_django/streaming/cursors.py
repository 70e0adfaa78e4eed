"""Cursors: the points at which readers of streams resume."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from datetime import UTC, datetime

__all__ = ["Cursor", "checksum"]


@dataclass(frozen=True, slots=True)
class Cursor:
    """The point up to which a reader has received a stream.

    The cursor of one run has the form ``sequence``, ``sequence.offset`` or
    ``sequence.offset.check``. The sequence is the number of the last event. The offset is the
    length, in characters, of the partial message after that event. The check is the CRC-32 of the
    text up to the offset. If it differs, the model has restarted the message, and the reader
    receives it from the start.

    The cursor of many runs is a time: ``t`` and milliseconds.
    """

    sequence: int = 0
    offset: int = 0
    check: str = ""
    since: datetime | None = None

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Parse a cursor. Raises ValueError if the string is not a cursor."""
        if text.startswith("t"):
            return cls(since=datetime.fromtimestamp(_number(text[1:]) / 1000, UTC))
        sequence, _, rest = text.partition(".")
        offset, _, check = rest.partition(".")
        return cls(_number(sequence), _number(offset or "0"), check)

    @staticmethod
    def at(moment: datetime) -> str:
        """Return the cursor of many runs at a time."""
        return f"t{int(moment.timestamp() * 1000)}"

    def matches(self, text: str) -> bool:
        """Whether the text that the reader has received is the start of this text."""
        return 0 < self.offset <= len(text) and self.check == checksum(text[: self.offset])


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 15:
        raise ValueError(f"{text[:20]!r} is not a number")
    return int(text)


def checksum(text: str) -> str:
    """Return the CRC-32 of a text, as 8 hexadecimal digits."""
    return f"{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}"
