"""The SDK's ``Session`` protocol over session items.

History is frozen when a run starts; what the run adds is buffered and written in the
transaction that ends it. So an attempt that is repeated starts from the same history.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.db import connections, transaction
from django.db.models import F, Subquery
from django.db.models.functions import Now

from agentic_django import runs, signals, threads
from agentic_django.batches import WouldWait
from agentic_django.conf import load, settings
from agentic_django.exceptions import BadInput
from agentic_django.models import (
    SESSION_KEY,
    AgentRun,
    AgentSession,
    AgentSessionItem,
    database,
)
from agentic_django.serialization import to_jsonable
from agentic_django.viewer import principal_of

if TYPE_CHECKING:
    from agents.memory import SessionSettings

__all__ = [
    "ItemStore",
    "RunHistory",
    "append",
    "archive",
    "forget",
    "get_session",
    "leave",
    "read",
    "rename",
]


def read(session: AgentSession, limit: int | None = None, **only: Any) -> list[Any]:
    """Return the items of a conversation, oldest first; with a limit, the last so many."""
    rows = AgentSessionItem.objects.using(database()).filter(session=session, **only)
    if limit is None:
        return list(rows.order_by("sequence").values_list("payload", flat=True))
    latest = rows.order_by("-sequence").values_list("payload", flat=True)[: max(limit, 0)]
    return list(latest)[::-1]


def append(session: AgentSession, items: Sequence[Any], run: AgentRun | None = None) -> None:
    """Write items at the end of a conversation, in one transaction."""
    _append([(session, items, run)])


def leave(left: Sequence[tuple[AgentRun, Sequence[Any]]], *, waits: bool = True) -> None:
    """Write what runs leave in their conversations, as far as they have one.

    Raises WouldWait if it is not to wait for conversations that another is just writing.
    """
    added = [(run.session, items, run) for run, items in left if run.session is not None]
    _append(added, waits=waits)


def _append(
    added: Sequence[tuple[AgentSession, Sequence[Any], AgentRun | None]], *, waits: bool = True
) -> None:
    added = [each for each in added if each[1]]
    if not added:
        return
    with transaction.atomic(using=database()):
        if waits:
            for session, items, _ in added:
                _reserve(session, len(items))
        else:
            _reserve_free({session: len(items) for session, items, _ in added})
        rows = [row for each in added for row in _rows(*each)]
        AgentSessionItem.objects.using(database()).bulk_create(rows)


def _reserve(session: AgentSession, count: int) -> None:
    """Raise the counter of items; reads the counter of runs on the way."""
    session.item_count = F("item_count") + count
    session.run_count = F("run_count")
    session.updated_at = Now()
    session.save(update_fields=["item_count", "run_count", "updated_at"])


def _reserve_free(counts: dict[AgentSession, int]) -> None:
    """Raise the counters of conversations that no other transaction is writing.

    Raises WouldWait if one is.
    """
    features = connections[database()].features
    table = AgentSession.objects.using(database())
    free = table.filter(pk__in=[session.pk for session in counts]).select_for_update(
        skip_locked=features.has_select_for_update_skip_locked,
        no_key=features.has_select_for_no_key_update,
    )
    present = {pk: both for pk, *both in free.values_list("pk", "item_count", "run_count")}
    if len(present) < len(counts):
        raise WouldWait
    for count in set(counts.values()):
        mine = table.filter(pk__in=[each.pk for each, own in counts.items() if own == count])
        mine.update(item_count=F("item_count") + count, updated_at=Now())
    for session, count in counts.items():
        items, session.run_count = present[session.pk]
        session.item_count = items + count


def _rows(
    session: AgentSession, items: Sequence[Any], run: AgentRun | None
) -> list[AgentSessionItem]:
    first = session.item_count - len(items) + 1
    return [
        AgentSessionItem(session=session, sequence=sequence, payload=item, run=run)
        for sequence, item in enumerate(items, first)
    ]


def forget(run: AgentRun) -> None:
    """Delete what a run had left in its conversation, because it is tried again."""
    AgentSessionItem.objects.using(database()).filter(run=run).delete()


def rename(session: AgentSession, title: str) -> None:
    """Give a conversation another title, of at most 255 characters."""
    _change(session, title=title)


def archive(session: AgentSession, *, archived: bool = True) -> None:
    """Put a conversation aside, or back among the others; it can be gone on with either way."""
    _change(session, archived_at=Now() if archived else None)


def _change(session: AgentSession, **columns: Any) -> None:
    """Write columns that a person decides on; that a conversation was used stays as it was."""
    AgentSession.objects.using(database()).filter(pk=session.pk).update(**columns)
    session.refresh_from_db(fields=columns)


class RunHistory:
    """A conversation as one run sees it: what was there before it, and what it adds.

    Implements ``agents.memory.Session``.
    """

    session_settings: SessionSettings | None = None

    def __init__(self, run: AgentRun) -> None:
        self.run = run
        self.session_id = run.session.session_key if run.session else str(run.pk)
        self.added: list[Any] = []
        self._before: list[Any] | None = None
        self._limit: int | None = None
        self._later = 0

    async def get_items(self, limit: int | None = None) -> list[Any]:
        """Return all items, or the last ``limit``, oldest first.

        The first call reads no more than it is asked for, and begins where a person speaks: a
        provider refuses the output of a call that it is not shown.
        """
        if self._before is None:
            self._before = await self._begin(limit)
        elif self._is_short_of(limit):
            self._before, self._limit = await threads.call(self._read), None
        items = [*self._before, *self.added]
        return items if limit is None else items[len(items) - min(max(limit, 0), len(items)) :]

    def _is_short_of(self, limit: int | None) -> bool:
        return self._limit is not None and (limit is None or limit > self._limit + len(self.added))

    async def _begin(self, limit: int | None) -> list[Any]:
        if self._is_fresh:
            return []
        if settings.COMPACT_HISTORY is not None:
            return await self._compacted(load(settings.COMPACT_HISTORY))
        self._limit = limit
        items = await threads.call(self._read, limit)
        return items if limit is None or len(items) < limit else _from_a_person_on(items)

    @property
    def _is_fresh(self) -> bool:
        """Whether nothing can be there to read; the claim has read the counter."""
        run = self.run
        return run.session is None or (run.attempt == 1 and not run.session.item_count)

    def _read(self, limit: int | None = None) -> list[Any]:
        session = self.run.session
        assert session is not None, "A run without a conversation has nothing to read."
        only: dict[str, Any] = {"sequence__gt": session.digested} if session.digested else {}
        if self.run.attempt > 1:
            began = AgentRun.objects.using(database()).filter(pk=self.run.pk).values("started_at")
            only["created_at__lte"] = Subquery(began)
        items = read(session, limit, **only)
        self._later = len(items)
        return [*(session.digest or ()), *items] if session.digested else items

    async def _compacted(self, compact: Callable[..., Any]) -> list[Any]:
        """Return the history as the host wants it seen, from now on by later runs too."""
        items = await threads.call(self._read)
        if not self._later:  # An attempt before this one has done it, or a run.
            return items
        wanted = await threads.call_host(compact, self.run.session, list(items))
        if inspect.isawaitable(wanted):
            wanted = await wanted
        if wanted is None:
            return items
        kept: list[Any] = to_jsonable(list(wanted), "items")
        await threads.call(self._keep, kept)
        return kept

    def _keep(self, digest: list[Any]) -> None:
        session = self.run.session
        assert session is not None, "Only a conversation has a history."
        last = session.item_count
        with runs.together(self.run):
            runs.advance(self.run)
            mine = AgentSession.objects.using(database()).filter(pk=session.pk)
            mine.update(digest=digest, digested=last)
        session.digest, session.digested = digest, last

    async def add_items(self, items: list[Any]) -> None:
        """Keep items for the end of the run; raises NotSerializable for what cannot be stored."""
        self.added += to_jsonable(items, "items")

    async def pop_item(self) -> Any:
        """Take back the item that this run added last; None if it added none."""
        return self.added.pop() if self.added else None

    async def clear_session(self) -> None:
        """Take back what this run added; history from before it stays."""
        self.added.clear()


def _from_a_person_on(items: list[Any]) -> list[Any]:
    """Return items from the first message of a person on; all, if there is none."""
    starts = (n for n, item in enumerate(items) if item.get("role") == "user")
    return items[next(starts, 0) :]


class ItemStore:
    """A conversation outside of any run: every call reads or writes the database at once.

    Implements ``agents.memory.Session``, so that a host's own code can hand it to the SDK.
    """

    session_settings: SessionSettings | None = None

    def __init__(self, session: AgentSession) -> None:
        self.session = session
        self.session_id = session.session_key

    async def get_items(self, limit: int | None = None) -> list[Any]:
        """Return all items, or the last ``limit``, oldest first."""
        return await sync_to_async(read)(self.session, limit)

    async def add_items(self, items: list[Any]) -> None:
        """Write items at the end."""
        await sync_to_async(append)(self.session, to_jsonable(items, "items"))

    async def pop_item(self) -> Any:
        """Delete the last item and return it; None if there is none."""
        return await sync_to_async(self._pop)()

    def _pop(self) -> Any:
        with transaction.atomic(using=database()):
            last = self.session.items.select_for_update().order_by("-sequence").first()
            if last is not None:
                last.delete()
        return last.payload if last else None

    async def clear_session(self) -> None:
        """Delete all items."""
        await self.session.items.all().adelete()


def get_session(session_key: str, owner: Any, *, tenant: str = "") -> ItemStore:
    """Return the SDK session over a user's conversation, made if it does not exist yet.

    Raises BadInput for a key that could not stand in an address.
    """
    if not re.fullmatch(SESSION_KEY, session_key):
        text = "A session key is 1 to 255 ASCII letters, digits, '-' or '_'."
        raise BadInput(errors={"session_key": text})
    session, is_new = AgentSession.objects.using(database()).get_or_create(
        tenant=tenant,
        principal=principal_of(owner),
        session_key=session_key,
        defaults={"owner": owner},
    )
    if is_new:
        told = partial(signals.announce, signals.agent_session_created, AgentSession)
        transaction.on_commit(partial(told, session=session), using=database(), robust=True)
    return ItemStore(session)
