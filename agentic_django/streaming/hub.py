"""Reads the changes for all streams of this process, in one background thread.

One thread reads for all subscriptions at once, so their number does not change the load on the
database. ``concurrency.pubsub`` wakes the thread when a run changes. The thread also polls: every
``LOOK_SECONDS`` while notifications arrive, otherwise every ``POLL_SECONDS``. The first
subscription starts the thread. It ends some seconds after the last subscription ended.

Each cycle of the thread does this::

    subscriptions ──▶ ids of changed runs ──▶ snapshots and events, one query each
                                                        │
    event loop of each stream  ◀── bytes ◀── Feed.next_messages
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Iterable, Mapping
from contextlib import suppress
from datetime import datetime
from uuid import UUID

from django.db import Error, connections
from django.utils import timezone

from agentic_django.concurrency import pubsub
from agentic_django.concurrency.background_thread import BackgroundThread
from agentic_django.concurrency.process_state import process
from agentic_django.concurrency.pubsub_transports import transport
from agentic_django.engine import fenced_writes
from agentic_django.signals import logger
from agentic_django.streaming import changes
from agentic_django.streaming.changes import EventBatch, RunSnapshot
from agentic_django.streaming.sse_messages import Feed

__all__ = ["Subscription", "read_once"]

CYCLE_SECONDS = 0.03
"""The shortest time between two cycles. Changes within it are sent together."""

POLL_SECONDS = 0.12
LOOK_SECONDS = 2.0
_MARK_SECONDS = fenced_writes.WATCH_SECONDS / 3
_IDLE_SECONDS = 2.0  # See pubsub: an idle connection must not prevent that a database is dropped.
_MAX_BUFFERED_BYTES = 1_000_000
"""A stream with more unsent bytes is closed. Its reader reconnects and resumes at its cursor.

A chunk that is larger by itself is sent when nothing else is unsent."""


class Subscription:
    """One open stream: its feed, and the event loop that sends it."""

    def __init__(self, feed: Feed) -> None:
        self.feed = feed
        self.run_ids: set[UUID] = set()
        """The runs that the hub reads for this stream."""
        self.joined_at = timezone.now()
        self.loop = asyncio.get_running_loop()
        self._buffer: list[bytes] = []
        self._size = 0
        self._is_ready = asyncio.Event()
        self._is_finished = False

    async def chunks(self, keep_alive_seconds: float) -> AsyncIterator[bytes]:
        """Yield bytes to send, or an empty chunk after ``keep_alive_seconds`` without a message."""
        hub = process.get(Hub)
        hub.add(self)
        try:
            while not self._is_finished or self._buffer:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._is_ready.wait(), keep_alive_seconds)
                self._is_ready.clear()
                chunks, self._buffer, self._size = self._buffer, [], 0
                yield b"".join(chunks)
        finally:
            hub.remove(self)

    def deliver(self, chunk: bytes, *, is_finished: bool) -> None:
        """Buffer bytes to send. Call it in the event loop of the stream."""
        is_too_slow = bool(self._size) and self._size + len(chunk) > _MAX_BUFFERED_BYTES
        self._buffer.append(chunk)
        self._size += len(chunk)
        self._is_finished = self._is_finished or is_finished or is_too_slow
        self._is_ready.set()


class Hub(BackgroundThread):
    """Reads changes for all subscriptions of this process. Runs while it has subscriptions."""

    name = "agentic-hub"

    def __init__(self) -> None:
        super().__init__()
        self._new: list[Subscription] = []
        self._subscriptions: set[Subscription] = set()
        self._changed_ids: set[UUID] = set()
        self._polled_at = self._marked_at = 0.0
        self._marked_ids: set[UUID] = set()
        self._subscriber: pubsub.Subscriber | None = None

    # Called from any thread

    def add(self, subscription: Subscription) -> None:
        """Serve a subscription."""
        with self._condition:
            self._new.append(subscription)
            self.start()

    def remove(self, subscription: Subscription) -> None:
        """Stop serving a subscription."""
        with self._condition:
            self._subscriptions.discard(subscription)
            if subscription in self._new:
                self._new.remove(subscription)

    def wake(self, ids: set[str]) -> None:
        """Read these runs in the next cycle."""
        changed = set()
        for each in ids:
            with suppress(ValueError):  # Not an id, but a value from a test or another sender.
                changed.add(UUID(each))
        with self._condition:
            self._changed_ids |= changed
            self._condition.notify()

    # In the thread

    def _run(self) -> None:
        if transport() != "poll":
            self._subscriber = pubsub.Subscriber(pubsub.Topic.RUN_CHANGED, self.wake)
            self._subscriber.start()
        try:
            while self._wait_for_work():
                began = time.monotonic()
                try:
                    self._run_cycle()
                except Exception as error:  # noqa: BLE001 - the database is unreachable: try again
                    logger.warning("Cannot read changes of runs: %r", error)
                    self._polled_at = 0.0
                    with suppress(Error):
                        connections.close_all()
                    began += 1.0
                time.sleep(max(began + CYCLE_SECONDS - time.monotonic(), 0))
        finally:
            if self._subscriber is not None:
                self._subscriber.stop()

    def _poll_interval(self) -> float:
        is_notified = self._subscriber is not None and self._subscriber.is_healthy
        return LOOK_SECONDS if is_notified else POLL_SECONDS

    def _wait_for_work(self) -> bool:
        """Wait until a cycle is due. Return False after some time without a subscription."""
        idle_until = time.monotonic() + _IDLE_SECONDS
        with self._condition:
            while not self._is_stopped:
                now = time.monotonic()
                next_poll = self._polled_at + self._poll_interval()
                has_changes = bool(self._subscriptions) and bool(self._changed_ids)
                if self._new or has_changes or (self._subscriptions and now >= next_poll):
                    return True
                if not self._subscriptions and now >= idle_until:
                    break
                until = next_poll if self._subscriptions else idle_until
                self._condition.wait(max(min(until - now, 0.5), 0.001))
            return False

    def _run_cycle(self) -> None:
        """Read changed runs once, and send their messages."""
        with self._condition:
            new, self._new = self._new, []
            self._subscriptions |= set(new)
            subscriptions = list(self._subscriptions)
            changed, self._changed_ids = self._changed_ids, set()
        now = time.monotonic()
        is_poll = now >= self._polled_at + self._poll_interval()
        try:
            _add_initial_runs(new)
            _add_discovered_runs(subscriptions, None if is_poll else changed)
            watched = _watched_ids(subscriptions)
            ids = watched if is_poll else (changed & watched) | _watched_ids(new)
            unread = _publish(subscriptions, ids)
            self._mark_watched(subscriptions, now)
        except BaseException:
            with self._condition:  # The new subscriptions have not received any message yet.
                self._new += [each for each in new if each in self._subscriptions]
            raise
        if is_poll:
            self._polled_at = now
        with self._condition:
            self._changed_ids |= unread

    def _mark_watched(self, subscriptions: list[Subscription], now: float) -> None:
        """Mark the runs as watched, so that workers write their partial messages often.

        New runs are marked at once, and again a second later, because the first query skips locked
        rows.
        """
        watched = _watched_ids(subscriptions)
        is_due, new = now >= self._marked_at + _MARK_SECONDS, watched - self._marked_ids
        ids = watched if is_due else new
        if ids:
            fenced_writes.mark_watched(ids)
        if is_due or new:
            self._marked_at = now - (_MARK_SECONDS - 1 if new else 0)
        self._marked_ids = watched


# Which runs to read


def _add_initial_runs(new: list[Subscription]) -> None:
    """Add the runs of new subscriptions, at the point where each reader resumes."""
    by_time: dict[datetime | None, list[Subscription]] = defaultdict(list)
    for subscription in new:
        subscription.run_ids = set(subscription.feed.run_ids)
        by_time[subscription.feed.since].append(subscription)
    for since, subscriptions in by_time.items():
        scopes = {each.feed.scope for each in subscriptions if each.feed.scope}
        ids = changes.find_run_ids(scopes, since) if scopes else []
        snapshots = changes.read_snapshots(ids)
        before = changes.last_sequences_before(ids, since) if since and ids else {}
        for subscription in subscriptions:
            for run in _in_scope(subscription, snapshots.values()):
                received = before.get(run.pk, 0) if since else run.event_count
                subscription.feed.add_run(run.pk, received)
                subscription.run_ids.add(run.pk)


def _in_scope(subscription: Subscription, snapshots: Iterable[RunSnapshot]) -> list[RunSnapshot]:
    scope = subscription.feed.scope
    return [run for run in snapshots if scope is not None and scope.covers(run)]


def _add_discovered_runs(subscriptions: list[Subscription], changed: set[UUID] | None) -> None:
    """Add new runs in the scopes of subscriptions. With ``changed``, search only these runs."""
    scopes = {each.feed.scope for each in subscriptions if each.feed.scope}
    among = None if changed is None else changed - _watched_ids(subscriptions)
    if not scopes or among == set():
        return
    snapshots = changes.read_snapshots(changes.find_run_ids(scopes, ids=among))
    for subscription in subscriptions:
        feed, joined_at = subscription.feed, subscription.joined_at
        for run in _in_scope(subscription, snapshots.values()):
            if run.pk in subscription.run_ids:
                continue
            subscription.run_ids.add(run.pk)
            if feed.reads_events and not feed.has_run(run.pk):
                # A run that is older than the subscription was retried: skip its old events.
                is_older = run.created_at < joined_at
                before = changes.last_sequences_before([run.pk], joined_at) if is_older else {}
                feed.add_run(run.pk, before.get(run.pk, 0))


def _watched_ids(subscriptions: Iterable[Subscription]) -> set[UUID]:
    return set().union(*(each.run_ids for each in subscriptions))


# Sending


def _publish(subscriptions: Iterable[Subscription], ids: set[UUID]) -> set[UUID]:
    """Read runs, and send each subscription its new messages.

    Return the ids of runs that have more events than one query reads.
    """
    if not ids:
        return set()
    affected = [each for each in subscriptions if not each.run_ids.isdisjoint(ids)]
    snapshots = changes.read_snapshots(ids)
    batches = changes.read_event_batches(_event_cursors(affected, snapshots))
    by_loop: dict[asyncio.AbstractEventLoop, list[tuple[Subscription, bytes, bool]]]
    by_loop = defaultdict(list)
    for subscription in affected:
        feed = subscription.feed
        try:
            chunk = _next_chunk(subscription, ids, snapshots, batches)
        except Exception as error:  # noqa: BLE001 - a run that cannot be rendered ends one stream only
            logger.error("Closing a stream: cannot create a message: %r", error)
            chunk, feed.is_finished = b"", True
        if chunk or feed.is_finished:
            by_loop[subscription.loop].append((subscription, chunk, feed.is_finished))
    for loop, deliveries in by_loop.items():
        with suppress(RuntimeError):  # The loop has ended, and so have its streams.
            loop.call_soon_threadsafe(_deliver_all, deliveries)
    return set(_event_cursors(affected, snapshots))


def _event_cursors(
    subscriptions: Iterable[Subscription], snapshots: Mapping[UUID, RunSnapshot]
) -> dict[UUID, int]:
    """Return the number after which to read events, for each run with unsent events."""
    cursors: dict[UUID, int] = {}
    for subscription in subscriptions:
        if subscription.feed.reads_events:
            for pk in subscription.run_ids & snapshots.keys():
                received = subscription.feed.last_sequence(pk)
                if received < snapshots[pk].event_count:
                    cursors[pk] = min(received, cursors.get(pk, received))
    return cursors


def _next_chunk(
    subscription: Subscription,
    ids: set[UUID],
    snapshots: Mapping[UUID, RunSnapshot],
    batches: Mapping[UUID, EventBatch],
) -> bytes:
    """Return the new messages of a subscription, and drop the finished runs of its scope."""
    feed, chunk = subscription.feed, b""
    for pk in sorted(subscription.run_ids & ids):
        run = snapshots.get(pk)
        messages = feed.next_messages(pk, run, batches.get(pk, changes.NO_EVENTS))
        chunk += b"".join(each.encoded() for each in messages)
        if feed.scope is not None and (run is None or run.is_finished):
            subscription.run_ids.discard(pk)
    return chunk


def _deliver_all(deliveries: list[tuple[Subscription, bytes, bool]]) -> None:
    for subscription, chunk, is_finished in deliveries:
        subscription.deliver(chunk, is_finished=is_finished)


def read_once(feed: Feed) -> bytes:
    """Return all messages that a feed has now, for a server on which streams cannot stay open."""
    ids = set(feed.run_ids)
    if feed.scope is not None:
        ids |= set(changes.find_run_ids([feed.scope], feed.since))
    snapshots = changes.read_snapshots(ids)
    before = changes.last_sequences_before(ids, feed.since) if feed.since else {}
    chunk = b""
    for pk in sorted(ids):
        run = snapshots.get(pk)
        scope = None if pk in feed.run_ids else feed.scope
        if scope is not None and not (run and scope.covers(run)):
            continue
        if run is not None:
            feed.add_run(pk, before.get(pk, 0) if feed.since else run.event_count)
        while True:
            received = feed.last_sequence(pk)
            batches = changes.read_event_batches({pk: received}) if feed.reads_events else {}
            messages = feed.next_messages(pk, run, batches.get(pk, changes.NO_EVENTS))
            chunk += b"".join(each.encoded() for each in messages)
            if feed.last_sequence(pk) == received:
                break
    fenced_writes.mark_watched([pk for pk, run in snapshots.items() if not run.is_finished])
    return chunk
