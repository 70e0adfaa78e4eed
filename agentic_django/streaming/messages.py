"""What those who watch runs are told: from rows to messages, for pages and for programs.

Nothing here waits or keeps a connection: ``hub`` reads for all who watch in this process, and
``views.stream`` sends.
"""

from __future__ import annotations

import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from django.core.serializers.json import DjangoJSONEncoder
from django.utils import timezone

from agentic_django import serialization
from agentic_django.models import AgentEvent, Visibility
from agentic_django.presentation import markdown
from agentic_django.streaming.changes import NO_EVENTS, EventBatch, RunSnapshot, StreamScope

__all__ = ["END", "Cursor", "EventFeed", "Feed", "PageFeed", "SseMessage"]

END = "end"
"""The cursor of a page whose runs have all ended."""

_encode = DjangoJSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class SseMessage:
    """One message of a stream."""

    name: str
    data: Any
    id: str = ""

    def encoded(self) -> bytes:
        """Return it as it is sent."""
        head = f"id: {self.id}\n" if self.id else ""
        text = serialization.printable(_encode(self.data))
        return f"{head}event: {self.name}\ndata: {text}\n\n".encode()


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where a reader stands: the last event, and how much of the message behind it.

    Written ``sequence``, ``sequence.offset`` or ``sequence.offset.check``: the offset counts
    characters, and the check (CRC-32) is of the text up to there, so that a text which was
    begun anew meanwhile is told from its start. A reader of many runs stands at a time,
    written ``t`` and milliseconds.
    """

    sequence: int = 0
    offset: int = 0
    check: str = ""
    since: datetime | None = None

    @classmethod
    def parse(cls, text: str) -> Cursor:
        """Read a cursor; raises ValueError for what is none."""
        if text.startswith("t"):
            return cls(since=datetime.fromtimestamp(_number(text[1:]) / 1000, UTC))
        sequence, _, rest = text.partition(".")
        offset, _, check = rest.partition(".")
        return cls(_number(sequence), _number(offset or "0"), check)

    @staticmethod
    def at(moment: datetime) -> str:
        """Write the cursor of a reader of many runs."""
        return f"t{int(moment.timestamp() * 1000)}"

    def is_in(self, text: str) -> bool:
        """Whether the reader has the beginning of this text."""
        return 0 < self.offset <= len(text) and self.check == check(text[: self.offset])


def _number(text: str) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 15:
        raise ValueError(f"{text[:20]!r} is no number")
    return int(text)


def check(text: str) -> str:
    """Return what shows that a text is the same up to an offset."""
    return f"{zlib.crc32(text.encode('utf-8', 'surrogatepass')):08x}"


class Feed:
    """One who watches, and what was told so far; ``ids`` are the runs if they are few and named."""

    reads_events = False

    def __init__(
        self,
        ids: Iterable[UUID] = (),
        scope: StreamScope | None = None,
        since: datetime | None = None,
    ) -> None:
        self.ids = frozenset(ids)
        self.scope = scope
        self.since = since
        self.begun = timezone.now()
        self.is_over = False
        """Whether there is nothing more to be told."""
        self._ended: set[UUID] = set()

    def position(self, pk: UUID) -> int:
        """Return up to which event of a run this one was told."""
        return 0

    def begin(self, state: RunSnapshot, position: int) -> None:
        """Begin with a run at a position."""

    def knows(self, pk: UUID) -> bool:
        """Whether anything was told of a run."""
        return False

    def tell(
        self, state: RunSnapshot | None, pk: UUID, news: EventBatch = NO_EVENTS
    ) -> list[SseMessage]:
        """Return what is to be told of a run, whose state is None if it is gone."""
        raise NotImplementedError

    def _end(self, pk: UUID) -> None:
        self._ended.add(pk)
        self.is_over = self.scope is None and self._ended >= self.ids


class PageFeed(Feed):
    """A page: it is told which runs changed, and asks for their fragments; text comes rendered."""

    def __init__(self, ids: Iterable[UUID] = (), scope: StreamScope | None = None) -> None:
        super().__init__(ids, scope)
        self._stamps: dict[UUID, str] = {}
        self._blocks: dict[UUID, tuple[int, list[markdown.Block]]] = {}

    def tell(
        self, state: RunSnapshot | None, pk: UUID, news: EventBatch = NO_EVENTS
    ) -> list[SseMessage]:
        """See ``Follower``."""
        told: list[SseMessage] = []
        if state is not None:
            if self._stamps.get(pk) != state.stamp:
                self._stamps[pk] = state.stamp
                told.append(SseMessage("run", {"run": str(pk), "stamp": state.stamp}))
            told += self._grown(state)
        if state is None or state.is_finished:
            self._end(pk)
            if self.is_over:
                told.append(SseMessage("end", {}, END))
        else:
            self._ended.discard(pk)
        return told

    def _grown(self, state: RunSnapshot) -> list[SseMessage]:
        count, known = self._blocks.get(state.pk, (-1, []))
        if count != state.count:
            known = []
        text = state.text
        if not text:
            self._blocks.pop(state.pk, None)
            return []
        blocks = markdown.blocks(text)
        self._blocks[state.pk] = (state.count, blocks)
        same = _common(known, blocks)
        if count == state.count and same == len(blocks) == len(known):
            return []
        new = [str(block.html) for block in blocks[same:]]
        told = {"run": str(state.pk), "sequence": state.count, "from": same, "blocks": new}
        return [SseMessage("draft", told)]


def _common(known: Sequence[markdown.Block], blocks: Sequence[markdown.Block]) -> int:
    same = 0
    for old, new in zip(known, blocks, strict=False):
        if old is not new and old.source != new.source:
            break
        same += 1
    return same


class EventFeed(Feed):
    """A program: it is told all events, and the text between them as it grows."""

    reads_events = True

    def __init__(
        self,
        ids: Iterable[UUID] = (),
        scope: StreamScope | None = None,
        *,
        levels: Collection[str] = (Visibility.USER,),
        cursor: Cursor | None = None,
    ) -> None:
        cursor = cursor or Cursor()
        super().__init__(ids, scope, cursor.since)
        self.levels = levels
        self._cursor = cursor
        self._positions: dict[UUID, int] = dict.fromkeys(self.ids, cursor.sequence)
        self._texts: dict[UUID, dict[str, str]] = {}

    def position(self, pk: UUID) -> int:
        """See ``Follower``."""
        return self._positions.get(pk, 0)

    def knows(self, pk: UUID) -> bool:
        """See ``Follower``."""
        return pk in self._positions

    def begin(self, state: RunSnapshot, position: int) -> None:
        """See ``Follower``."""
        self._positions.setdefault(state.pk, position)

    def tell(
        self, state: RunSnapshot | None, pk: UUID, news: EventBatch = NO_EVENTS
    ) -> list[SseMessage]:
        """See ``Follower``."""
        told: list[SseMessage] = []
        if state is None:
            self._end(pk)
            return told
        for event in news.events:
            if event.sequence > self.position(pk):
                self._positions[pk] = event.sequence
                if event.visibility in self.levels:
                    told.append(self._event(state, event))
        self._positions[pk] = max(self.position(pk), min(news.upto, state.count))
        if self.position(pk) >= state.count:
            told += self._deltas(state)
            self._close(state)
        return told

    def _close(self, state: RunSnapshot) -> None:
        if state.is_finished:
            self._end(state.pk)
        else:
            self._ended.discard(state.pk)

    def _id(self, state: RunSnapshot, own: str) -> str:
        return own if self.scope is None else Cursor.at(state.read_at)

    def _event(self, state: RunSnapshot, event: AgentEvent) -> SseMessage:
        data = {
            "run_id": str(state.pk),
            "sequence": event.sequence,
            "event_type": event.event_type,
            "visibility": event.visibility,
            "payload": event.payload,
            "created_at": event.created_at,
        }
        return SseMessage(_name(event.event_type), data, self._id(state, str(event.sequence)))

    def _deltas(self, state: RunSnapshot) -> list[SseMessage]:
        before = self._texts.pop(state.pk, {})
        if not state.drafts:
            return []
        told: list[SseMessage] = []
        self._texts[state.pk] = {}
        for key, (attempt, _, text) in state.drafts.items():
            known = before.get(key, self._resumed(state, text))
            known = known if text.startswith(known) else ""
            self._texts[state.pk][key] = text
            if text != known:
                told.append(self._delta(state, key, attempt, len(known), text))
        return told

    def _resumed(self, state: RunSnapshot, text: str) -> str:
        """Return what a reader who comes back has of a text."""
        cursor = self._cursor
        fits = cursor.sequence == state.count and cursor.is_in(text)
        return text[: cursor.offset] if fits else ""

    def _delta(
        self, state: RunSnapshot, key: str, attempt: int, offset: int, text: str
    ) -> SseMessage:
        data = {
            "run_id": str(state.pk),
            "sequence": state.count,
            "key": key,
            "attempt": attempt,
            "offset": offset,
            "text": text[offset:],
        }
        own = f"{state.count}.{len(text)}.{check(text)}"
        return SseMessage("message.delta", data, self._id(state, own))


def _name(event_type: str) -> str:
    """Return an event's type as a name that the stream's format can hold."""
    return "".join(" " if c in "\r\n\0" else c for c in serialization.printable(event_type))
