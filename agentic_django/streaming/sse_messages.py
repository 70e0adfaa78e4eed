"""Turns snapshots and events of runs into server-sent messages, for pages and for API clients.

A ``Feed`` stores the position of one reader. It does not read the database and does not wait.
``hub`` reads for all feeds of the process, and ``views.stream`` sends the messages.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import takewhile
from typing import Any
from uuid import UUID

from django.core.serializers.json import DjangoJSONEncoder
from django.utils import timezone

from agentic_django import serialization
from agentic_django.models import AgentEvent, Visibility
from agentic_django.presentation import growing_text
from agentic_django.presentation.growing_text import Block
from agentic_django.streaming.changes import NO_EVENTS, EventBatch, RunSnapshot, StreamScope
from agentic_django.streaming.cursors import Cursor, checksum

__all__ = ["END", "EventFeed", "Feed", "PageFeed", "SseMessage"]

END = "end"
"""The cursor of a page whose runs are all finished."""

_encode = DjangoJSONEncoder(ensure_ascii=False, separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class SseMessage:
    """One server-sent message."""

    name: str
    data: Any
    id: str = ""

    def encoded(self) -> bytes:
        """Return the message in the format of the stream."""
        head = f"id: {self.id}\n" if self.id else ""
        text = serialization.printable(_encode(self.data))
        return f"{head}event: {self.name}\ndata: {text}\n\n".encode()


class Feed:
    """The messages of one reader.

    ``run_ids`` are runs that the reader named, and ``scope`` adds all runs in it. ``since`` is the
    time at which a reader of a scope resumes.
    """

    reads_events = False
    """Whether the feed needs the events of its runs."""

    def __init__(
        self,
        run_ids: Iterable[UUID] = (),
        scope: StreamScope | None = None,
        since: datetime | None = None,
    ) -> None:
        self.run_ids = frozenset(run_ids)
        self.scope = scope
        self.since = since
        self.started_at = timezone.now()
        self.is_finished = False
        """Whether no more messages will follow."""
        self._finished: set[UUID] = set()

    def last_sequence(self, pk: UUID) -> int:
        """Return the number of the last event of a run that the reader has received."""
        return 0

    def add_run(self, pk: UUID, last_sequence: int) -> None:
        """Add a run whose events the reader has received up to a number."""

    def has_run(self, pk: UUID) -> bool:
        """Whether a run was added or reported."""
        return False

    def next_messages(
        self, pk: UUID, snapshot: RunSnapshot | None, batch: EventBatch = NO_EVENTS
    ) -> list[SseMessage]:
        """Return the new messages about a run. ``snapshot`` is None if the run was deleted."""
        raise NotImplementedError

    def _mark(self, pk: UUID, *, is_finished: bool) -> None:
        """Note whether a run is finished. A retry makes a finished run active again."""
        if is_finished:
            self._finished.add(pk)
            self.is_finished = self.scope is None and self._finished >= self.run_ids
        else:
            self._finished.discard(pk)


class PageFeed(Feed):
    """The messages of a page: the ids of changed runs, and partial messages as HTML.

    The page then requests the fragments of the changed runs.
    """

    def __init__(self, run_ids: Iterable[UUID] = (), scope: StreamScope | None = None) -> None:
        super().__init__(run_ids, scope)
        self._stamps: dict[UUID, str] = {}
        self._blocks: dict[UUID, tuple[int, list[Block]]] = {}

    def next_messages(
        self, pk: UUID, snapshot: RunSnapshot | None, batch: EventBatch = NO_EVENTS
    ) -> list[SseMessage]:
        """See ``Feed.next_messages``."""
        found: list[SseMessage] = []
        if snapshot is not None:
            if self._stamps.get(pk) != snapshot.stamp:
                self._stamps[pk] = snapshot.stamp
                found.append(SseMessage("run", {"run": str(pk), "stamp": snapshot.stamp}))
            found += self._draft_messages(snapshot)
        is_finished = snapshot is None or snapshot.is_finished
        self._mark(pk, is_finished=is_finished)
        if is_finished and self.is_finished:
            found.append(SseMessage("end", {}, END))
        return found

    def _draft_messages(self, snapshot: RunSnapshot) -> list[SseMessage]:
        """Return the changed blocks of the partial message, as one message or none."""
        count, known = self._blocks.get(snapshot.pk, (-1, []))
        if count != snapshot.event_count:
            known = []
        text = snapshot.text
        if not text:
            self._blocks.pop(snapshot.pk, None)
            return []
        blocks = growing_text.blocks(text)
        self._blocks[snapshot.pk] = (snapshot.event_count, blocks)
        pairs = zip(known, blocks, strict=False)
        same = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
        if count == snapshot.event_count and same == len(blocks) == len(known):
            return []
        changed = [str(block.html) for block in blocks[same:]]
        identity = {"run": str(snapshot.pk), "sequence": snapshot.event_count}
        return [SseMessage("draft", {**identity, "from": same, "blocks": changed})]


class EventFeed(Feed):
    """The messages of an API client: all events, and partial messages as they grow."""

    reads_events = True

    def __init__(
        self,
        run_ids: Iterable[UUID] = (),
        scope: StreamScope | None = None,
        *,
        levels: Collection[str] = (Visibility.USER,),
        cursor: Cursor | None = None,
    ) -> None:
        cursor = cursor or Cursor()
        super().__init__(run_ids, scope, cursor.since)
        self.levels = levels
        self._cursor = cursor
        self._sequences: dict[UUID, int] = dict.fromkeys(self.run_ids, cursor.sequence)
        self._texts: dict[UUID, dict[str, str]] = {}

    def last_sequence(self, pk: UUID) -> int:
        """See ``Feed.last_sequence``."""
        return self._sequences.get(pk, 0)

    def has_run(self, pk: UUID) -> bool:
        """See ``Feed.has_run``."""
        return pk in self._sequences

    def add_run(self, pk: UUID, last_sequence: int) -> None:
        """See ``Feed.add_run``."""
        self._sequences.setdefault(pk, last_sequence)

    def next_messages(
        self, pk: UUID, snapshot: RunSnapshot | None, batch: EventBatch = NO_EVENTS
    ) -> list[SseMessage]:
        """See ``Feed.next_messages``."""
        if snapshot is None:
            self._mark(pk, is_finished=True)
            return []
        found: list[SseMessage] = []
        for event in batch.events:
            if event.sequence > self.last_sequence(pk):
                self._sequences[pk] = event.sequence
                if event.visibility in self.levels:
                    found.append(self._event_message(snapshot, event))
        through = min(batch.through, snapshot.event_count)
        self._sequences[pk] = max(self.last_sequence(pk), through)
        if self.last_sequence(pk) >= snapshot.event_count:
            found += self._draft_messages(snapshot)
            self._mark(pk, is_finished=snapshot.is_finished)
        return found

    def _cursor_after(self, snapshot: RunSnapshot, own: str) -> str:
        """Return the cursor after a message: a time for a scope, else the run's own cursor."""
        return own if self.scope is None else Cursor.at(snapshot.read_at)

    def _event_message(self, snapshot: RunSnapshot, event: AgentEvent) -> SseMessage:
        data = {
            "run_id": str(snapshot.pk),
            "sequence": event.sequence,
            "event_type": event.event_type,
            "visibility": event.visibility,
            "payload": event.payload,
            "created_at": event.created_at,
        }
        # The format of the stream forbids these characters in a name.
        name = re.sub(r"[\r\n\0]", " ", serialization.printable(event.event_type))
        return SseMessage(name, data, self._cursor_after(snapshot, str(event.sequence)))

    def _draft_messages(self, snapshot: RunSnapshot) -> list[SseMessage]:
        """Return the new text of each partial message."""
        before = self._texts.pop(snapshot.pk, {})
        if snapshot.drafts:
            self._texts[snapshot.pk] = {key: text for key, (*_, text) in snapshot.drafts.items()}
        found: list[SseMessage] = []
        cursor, sequence = self._cursor, snapshot.event_count
        for key, (attempt, _, text) in snapshot.drafts.items():
            has_resumed = cursor.sequence == sequence and cursor.matches(text)
            known = before.get(key, text[: cursor.offset] if has_resumed else "")
            offset = len(known) if text.startswith(known) else 0
            if offset == len(text):
                continue
            data = {
                "run_id": str(snapshot.pk),
                "sequence": sequence,
                "key": key,
                "attempt": attempt,
                "offset": offset,
                "text": text[offset:],
            }
            own = f"{sequence}.{len(text)}.{checksum(text)}"
            found.append(SseMessage("message.delta", data, self._cursor_after(snapshot, own)))
        return found
