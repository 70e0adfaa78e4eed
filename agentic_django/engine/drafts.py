"""Writes partial messages: the text of a model's message before the message is complete.

A draft is neither an event nor a journal entry. One thread writes the drafts of all runs of the
process, fenced by the attempt. It writes often while somebody watches the run, and once a second
otherwise. The transaction that records the message or ends the run deletes the draft.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from django.db import Error, connections, models, transaction
from django.db.models import Q
from django.db.models.functions import Now

from agentic_django.concurrency import pubsub
from agentic_django.concurrency.background_thread import BackgroundThread
from agentic_django.concurrency.process_state import process
from agentic_django.engine.attempt import Attempt
from agentic_django.engine.run_rows import run_rows
from agentic_django.models import AgentDraft, AgentRun, database
from agentic_django.models.querysets import skip_locked_rows
from agentic_django.signals import logger

__all__ = ["PartialMessage", "delete_draft", "delete_drafts"]

FIRST_SECONDS = 0.05
"""The delay before the first write. A message that completes earlier needs no draft."""

WATCHED_SECONDS = 0.08
UNWATCHED_SECONDS = 1.0
_CHARACTERS_PER_SECOND = 250_000
"""A long text is written less often, because each write contains the whole text."""

_SLACK_SECONDS = 0.02
_IDLE_SECONDS = 2.0


class PartialMessage:
    """The text of a model call that has not ended."""

    def __init__(self, attempt: Attempt, key: str) -> None:
        self.attempt = attempt
        self.run = attempt.run
        self.key = key
        self.is_wanted = True
        """Whether users may see the text."""
        self.is_written = False
        """Whether the table may have a row for this message."""
        self.due = 0.0
        self._parts: list[str] = []
        self._item = 0

    @property
    def text(self) -> str:
        """The text received so far."""
        return "".join(list(self._parts))

    def add(self, delta: str, item: int = 0) -> None:
        """Append text; ``item`` is the index of the message in the model's response."""
        if self.attempt.joined_transaction or not self.is_wanted or not delta:
            return  # A draft in the caller's transaction is invisible to other connections.
        if self._parts and item != self._item:
            self._parts.append("\n\n")
        self._item = item
        self._parts.append(delta)
        process.get(DraftWriter).add(self)

    @property
    def has_begun(self) -> bool:
        """Whether the model has sent text that users may see."""
        return bool(self._parts)

    def close(self) -> None:
        """Stop writing the message, and wait for a write that is in progress."""
        self.drop()
        process.get(DraftWriter).wait_for(self)

    def drop(self) -> None:
        """Stop writing the message, without waiting."""
        self.is_wanted = False
        if self._parts:
            process.get(DraftWriter).remove(self)


class DraftWriter(BackgroundThread):
    """Writes partial messages that have grown since their last write."""

    name = "agentic-drafts"

    def __init__(self) -> None:
        super().__init__()
        self._grown: dict[PartialMessage, None] = {}
        self._writing: frozenset[PartialMessage] = frozenset()

    def add(self, draft: PartialMessage) -> None:
        """Write a draft when it is due."""
        with self._condition:
            if draft in self._grown:
                return
            self._grown[draft] = None
            draft.due = draft.due or time.monotonic() + FIRST_SECONDS
            self.start()

    def remove(self, draft: PartialMessage) -> None:
        """Stop writing a draft."""
        with self._condition:
            self._grown.pop(draft, None)

    def wait_for(self, draft: PartialMessage) -> None:
        """Wait until a draft is not being written."""
        with self._condition:
            self._condition.wait_for(lambda: draft not in self._writing)

    def _run(self) -> None:
        while due := self._take():
            for draft in due:
                draft.is_written = draft.attempt.has_drafts = True
            try:
                watched = _write(due)
            except Exception as error:  # noqa: BLE001 - no database; the drafts are written later
                logger.warning("Cannot write partial messages: %r", error)
                watched = {}
                with suppress(Error):
                    connections.close_all()
            with self._condition:
                self._writing = frozenset()
                now = time.monotonic()
                for draft in due:
                    is_watched = watched.get(draft.run.pk, False)
                    pause = WATCHED_SECONDS if is_watched else UNWATCHED_SECONDS
                    draft.due = now + pause + len(draft.text) / _CHARACTERS_PER_SECOND
                    if draft.is_wanted and draft.run.pk not in watched:  # Locked, or no database.
                        self._grown.setdefault(draft)
                self._condition.notify_all()

    def _take(self) -> frozenset[PartialMessage]:
        """Wait for drafts that are due, and return them. Return none if the thread must end."""
        idle_until = time.monotonic() + _IDLE_SECONDS
        with self._condition:
            while not self._is_stopped:
                now = time.monotonic()
                due = frozenset(each for each in self._grown if each.due <= now + _SLACK_SECONDS)
                if due:
                    self._writing = due
                    for draft in due:
                        self._grown.pop(draft)
                    return due
                if not self._grown and now >= idle_until:
                    break
                soonest = min((draft.due for draft in self._grown), default=idle_until)
                self._condition.wait(max(soonest - now, 0.001))
            return frozenset()


def _write(due: Iterable[PartialMessage]) -> dict[Any, bool]:
    """Write drafts. Return the runs that could be locked, and whether each is watched.

    The lock is the fence. A run that another transaction has locked is skipped, so this thread
    never waits.
    """
    is_watched = models.ExpressionWrapper(
        Q(watched_until__isnull=False, watched_until__gt=Now()), models.BooleanField()
    )
    with transaction.atomic(using=database()):
        runs = run_rows().running().filter(pk__in={draft.run.pk for draft in due})
        found = skip_locked_rows(runs.order_by()).values_list("pk", "attempt", is_watched)
        locked = {pk: (attempt, bool(watched)) for pk, attempt, watched in found}
        rows = [
            AgentDraft(
                run_id=draft.run.pk, attempt=draft.attempt.number, key=draft.key, text=draft.text
            )
            for draft in due
            if locked.get(draft.run.pk, (0, False))[0] == draft.attempt.number
        ]
        targets = connections[database()].features.supports_update_conflicts_with_target
        AgentDraft.objects.using(database()).bulk_create(
            rows,
            update_conflicts=True,
            unique_fields=("run", "key") if targets else None,
            update_fields=("attempt", "text"),
        )
    for row in rows:
        pubsub.publish(pubsub.Topic.RUN_CHANGED, row.run_id)
    return {pk: watched for pk, (_attempt, watched) in locked.items()}


def delete_draft(run: AgentRun, key: str) -> None:
    """Delete the draft of a message, in the transaction that records it."""
    AgentDraft.objects.using(database()).filter(run=run, key=key).delete()


def delete_drafts(run: AgentRun) -> None:
    """Delete a run's drafts, in the transaction that ends it."""
    AgentDraft.objects.using(database()).filter(run=run).delete()
