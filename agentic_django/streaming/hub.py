"""The one reader of a process: it looks for what is new, for all who watch in this process.

A thread reads for everybody at once, so how many watch changes nothing for the database. It is
woken by what ``wakeup`` hears, and looks by itself every ``LOOK_SECONDS``; where nothing can be
heard it looks every ``POLL_SECONDS``. It is started by the first who watches and ends some
seconds after the last has gone.
"""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Iterable
from contextlib import suppress
from datetime import datetime
from uuid import UUID

from django.db import Error, connections
from django.utils import timezone

from agentic_django.concurrency import pubsub
from agentic_django.concurrency.background_thread import BackgroundThread
from agentic_django.concurrency.channels import transport
from agentic_django.concurrency.process_state import process
from agentic_django.engine import fenced_writes
from agentic_django.signals import logger
from agentic_django.streaming import changes, messages
from agentic_django.streaming.changes import EventBatch, RunSnapshot
from agentic_django.streaming.messages import Feed

__all__ = ["Subscription", "read_once"]

TICK_SECONDS = 0.03
"""News of so long is told together."""

POLL_SECONDS = 0.12
LOOK_SECONDS = 2.0
_NOTE_SECONDS = fenced_writes.WATCH_SECONDS / 3
_IDLE_SECONDS = 5.0
_MOST_BYTES = 1_000_000
"""A reader who lags by so much is cut off; he comes back for the rest."""


class Subscription:
    """One stream: a follower, and the way to the loop on which it is sent."""

    def __init__(self, follower: Feed) -> None:
        self.follower = follower
        self.runs: set[UUID] = set()
        """The runs that are read for it."""
        self.joined = timezone.now()
        self.loop = asyncio.get_running_loop()
        self._parts: list[bytes] = []
        self._size = 0
        self._news = asyncio.Event()
        self._is_over = False

    async def told(self, quiet: float) -> AsyncIterator[bytes]:
        """Yield what is to be sent; an empty part after so many seconds without anything."""
        hub = process.get(Hub)
        hub.join(self)
        try:
            while not self._is_over or self._parts:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._news.wait(), quiet)
                self._news.clear()
                parts, self._parts, self._size = self._parts, [], 0
                yield b"".join(parts)
        finally:
            hub.leave(self)

    def take(self, part: bytes, *, is_over: bool) -> None:
        """Take what is to be sent; on the watch's own loop."""
        self._parts.append(part)
        self._size += len(part)
        self._is_over = self._is_over or is_over or self._size > _MOST_BYTES
        self._news.set()


class Hub(BackgroundThread):
    """Reads changes for all subscriptions of this process; runs while there are any."""

    name = "agentic-hub"

    def __init__(self) -> None:
        super().__init__()
        self._joining: list[Subscription] = []
        self._watches: set[Subscription] = set()
        self._named: set[UUID] = set()
        self._looked = self._noted = 0.0
        self._known: set[UUID] = set()
        self._subscriber: pubsub.Subscriber | None = None

    # From any thread

    def join(self, watch: Subscription) -> None:
        """Serve a subscription."""
        with self._condition:
            self._joining.append(watch)
            self.start()

    def leave(self, watch: Subscription) -> None:
        """Stop serving a subscription."""
        with self._condition:
            self._watches.discard(watch)
            if watch in self._joining:
                self._joining.remove(watch)

    def hear(self, ids: set[str]) -> None:
        """Read these runs next."""
        named = set()
        for each in ids:
            with suppress(ValueError):  # A word of a test, or of somebody else.
                named.add(UUID(each))
        with self._condition:
            self._named |= named
            self._condition.notify()

    # In the thread

    def _run(self) -> None:
        if transport() != "poll":
            self._subscriber = pubsub.Subscriber(pubsub.Topic.RUN_CHANGED, self.hear)
            self._subscriber.start()
        try:
            while self._wait():
                began = time.monotonic()
                try:
                    self._tick()
                except Exception as error:  # noqa: BLE001 - the database is away; it is asked again
                    logger.warning("Cannot look for news of runs now: %r", error)
                    self._looked = 0.0
                    _disconnect()
                    began += 1.0
                time.sleep(max(began + TICK_SECONDS - time.monotonic(), 0))
        finally:
            if self._subscriber is not None:
                self._subscriber.stop()

    def _look_interval(self) -> float:
        is_told = self._subscriber is not None and self._subscriber.is_healthy
        return LOOK_SECONDS if is_told else POLL_SECONDS

    def _wait(self) -> bool:
        """Wait until there is something to look at; False if nobody has watched for long."""
        idle_until = time.monotonic() + _IDLE_SECONDS
        with self._condition:
            while not self._is_stopped:
                now = time.monotonic()
                if self._joining or (self._watches and self._named):
                    return True
                if self._watches and now >= self._looked + self._look_interval():
                    return True
                if not self._watches and now >= idle_until:
                    break
                until = self._looked + self._look_interval() if self._watches else idle_until
                self._condition.wait(max(min(until - now, 0.5), 0.001))
            return False

    def _tick(self) -> None:
        with self._condition:
            joining, self._joining = self._joining, []
            self._watches |= set(joining)
            watches = list(self._watches)
            named, self._named = self._named, set()
        now = time.monotonic()
        try:
            is_look = now >= self._looked + self._look_interval()
            self._admit(joining)
            ids = self._targets(watches, joining, named, is_look)
            behind = _tell(watches, ids)
            self._note(watches, now)
        except BaseException:
            with self._condition:  # They have not been served.
                self._joining += [watch for watch in joining if watch in self._watches]
            raise
        if is_look:
            self._looked = now
        with self._condition:
            self._named |= behind

    def _admit(self, joining: list[Subscription]) -> None:
        """Find the runs of those who have just come."""
        for watch in joining:
            watch.runs = set(watch.follower.ids)
        for since, watches in _by_since(joining).items():
            scopes = {w.follower.scope for w in watches if w.follower.scope}
            ids = changes.find_runs(scopes, since) if scopes else []
            states = changes.read_snapshots(ids)
            before = changes.positions(ids, since) if since and ids else {}
            for watch in watches:
                for state in _covered(watch, states.values()):
                    position = before.get(state.pk, 0) if since else state.count
                    watch.follower.begin(state, position)
                    watch.runs.add(state.pk)

    def _targets(
        self,
        watches: list[Subscription],
        joining: list[Subscription],
        named: set[UUID],
        is_look: bool,
    ) -> set[UUID]:
        """Return the runs to be read now."""
        watched: set[UUID] = set().union(*(watch.runs for watch in watches))
        with_scope = [watch for watch in watches if watch.follower.scope]
        unknown = None if is_look else named - watched
        if with_scope and unknown != set():
            watched |= _discover(with_scope, unknown)
        if is_look:
            return watched
        return (named & watched).union(*(watch.runs for watch in joining))

    def _note(self, watches: list[Subscription], now: float) -> None:
        """Let those who write know that somebody watches: of what is new, at once.

        And once more a second later, for a row that was just being written is left out.
        """
        watched: set[UUID] = set().union(*(watch.runs for watch in watches))
        is_due, new = now >= self._noted + _NOTE_SECONDS, watched - self._known
        ids = watched if is_due else new
        if ids:
            fenced_writes.mark_watched(ids)
        if is_due or new:
            self._noted = now - (_NOTE_SECONDS - 1 if new else 0)
        self._known = watched


def _disconnect() -> None:
    with suppress(Error):
        connections.close_all()


def _by_since(watches: Iterable[Subscription]) -> dict[datetime | None, list[Subscription]]:
    groups: dict[datetime | None, list[Subscription]] = defaultdict(list)
    for watch in watches:
        groups[watch.follower.since].append(watch)
    return groups


def _covered(watch: Subscription, states: Iterable[RunSnapshot]) -> list[RunSnapshot]:
    scope = watch.follower.scope
    return [state for state in states if scope is not None and scope.covers(state)]


def _discover(watches: list[Subscription], among: Collection[UUID] | None) -> set[UUID]:
    """Find runs that are new to those who watch more than named runs."""
    scopes = {watch.follower.scope for watch in watches if watch.follower.scope}
    states = changes.read_snapshots(changes.find_runs(scopes, ids=among))
    found: set[UUID] = set()
    for watch in watches:
        for state in _covered(watch, states.values()):
            if state.pk not in watch.runs:
                watch.runs.add(state.pk)
                found.add(state.pk)
                _begin(watch, state)
    return found


def _begin(watch: Subscription, state: RunSnapshot) -> None:
    """Begin with a run that was made since, or that an older one has become again by a retry."""
    follower = watch.follower
    if follower.reads_events and not follower.knows(state.pk):
        is_older = state.created_at < watch.joined
        before = changes.positions([state.pk], watch.joined) if is_older else {}
        follower.begin(state, before.get(state.pk, 0))


def _tell(watches: Iterable[Subscription], ids: set[UUID]) -> set[UUID]:
    """Read runs, and tell each of those who watch them what is new to it.

    Returns the runs of which there is more than can be read at once.
    """
    if not ids:
        return set()
    watching = [watch for watch in watches if not watch.runs.isdisjoint(ids)]
    states = changes.read_snapshots(ids)
    events = changes.events_after(_behind(watching, states))
    mail: dict[asyncio.AbstractEventLoop, list[tuple[Subscription, bytes, bool]]] = defaultdict(
        list
    )
    for watch in watching:
        try:
            part = _part(watch, ids, states, events)
        except Exception as error:  # noqa: BLE001 - one run that cannot be told is not to stop others
            logger.error("What is new cannot be told to one who watches: %r", error)
            part, watch.follower.is_over = b"", True
        if part or watch.follower.is_over:
            mail[watch.loop].append((watch, part, watch.follower.is_over))
    for loop, letters in mail.items():
        with suppress(RuntimeError):  # The loop has ended, and its streams with it.
            loop.call_soon_threadsafe(_deliver, letters)
    return set(_behind(watching, states))


def _behind(watches: Iterable[Subscription], states: dict[UUID, RunSnapshot]) -> dict[UUID, int]:
    """Return from where on events are to be read, of the runs of which somebody lacks some."""
    cursors: dict[UUID, int] = {}
    for watch in watches:
        if watch.follower.reads_events:
            for pk in watch.runs & states.keys():
                position = watch.follower.position(pk)
                if position < states[pk].count:
                    cursors[pk] = min(position, cursors.get(pk, position))
    return cursors


def _part(
    watch: Subscription,
    ids: set[UUID],
    states: dict[UUID, RunSnapshot],
    events: dict[UUID, EventBatch],
) -> bytes:
    told: list[messages.SseMessage] = []
    for pk in sorted(watch.runs & ids):
        state = states.get(pk)
        told += watch.follower.tell(state, pk, events.get(pk, changes.NO_EVENTS))
        if watch.follower.scope is not None and (state is None or state.is_finished):
            watch.runs.discard(pk)
    return b"".join(each.encoded() for each in told)


def _deliver(letters: list[tuple[Subscription, bytes, bool]]) -> None:
    for watch, part, is_over in letters:
        watch.take(part, is_over=is_over)


def read_once(follower: Feed) -> bytes:
    """Return what there is to be told now, where nothing can be kept open."""
    ids = set(follower.ids)
    if follower.scope is not None:
        ids |= set(changes.find_runs([follower.scope], follower.since))
    states = changes.read_snapshots(ids)
    before = changes.positions(ids, follower.since) if follower.since else {}
    told: list[messages.SseMessage] = []
    for pk in sorted(ids):
        state = states.get(pk)
        scope = None if pk in follower.ids else follower.scope
        if scope is not None and not (state and scope.covers(state)):
            continue
        if state is not None:
            begun = before.get(pk, 0) if follower.since else state.count
            follower.begin(state, begun)
        while True:
            position = follower.position(pk)
            events = changes.events_after({pk: position}) if follower.reads_events else {}
            told += follower.tell(state, pk, events.get(pk, changes.NO_EVENTS))
            if follower.position(pk) == position:
                break
    fenced_writes.mark_watched([pk for pk, state in states.items() if not state.is_finished])
    return b"".join(each.encoded() for each in told)
