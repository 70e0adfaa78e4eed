"""The SDK's ``Session`` protocol over session items.

History is frozen when a run starts; what the run adds is buffered and written in the
transaction that ends it. So an attempt that is repeated starts from the same history.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from asgiref.sync import sync_to_async
from django.db import transaction
from django.db.models import Subquery

from agentic_django.concurrency import event_loop
from agentic_django.conf import load, settings
from agentic_django.engine import fenced_writes
from agentic_django.engine.attempt import Attempt
from agentic_django.engine.session_items import append_items, read_items
from agentic_django.engine.sessions import get_or_create_session
from agentic_django.models import AgentRun, AgentSession, database
from agentic_django.serialization import to_jsonable

if TYPE_CHECKING:
    from agents.memory import SessionSettings

__all__ = ["ItemStore", "RunHistory", "get_session"]


class RunHistory:
    """A conversation as one run sees it: what was there before it, and what it adds.

    Implements ``agents.memory.Session``.
    """

    session_settings: SessionSettings | None = None

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.run = run = attempt.run
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
            self._before, self._limit = await event_loop.run_sync(self._read), None
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
        items = await event_loop.run_sync(self._read, limit)
        return items if limit is None or len(items) < limit else _from_a_person_on(items)

    @property
    def _is_fresh(self) -> bool:
        """Whether nothing can be there to read; the claim has read the counter."""
        run = self.run
        return run.session is None or (self.attempt.number == 1 and not run.session.item_count)

    def _read(self, limit: int | None = None) -> list[Any]:
        session = self.run.session
        assert session is not None, "A run without a conversation has nothing to read."
        only: dict[str, Any] = (
            {"sequence__gt": session.compacted_through} if session.compacted_through else {}
        )
        if self.attempt.number > 1:
            began = AgentRun.objects.using(database()).filter(pk=self.run.pk).values("started_at")
            only["created_at__lte"] = Subquery(began)
        items = read_items(session, limit, **only)
        self._later = len(items)
        return [*(session.compacted_items or ()), *items] if session.compacted_through else items

    async def _compacted(self, compact: Callable[..., Any]) -> list[Any]:
        """Return the history as the host wants it seen, from now on by later runs too."""
        items = await event_loop.run_sync(self._read)
        if not self._later:  # An attempt before this one has done it, or a run.
            return items
        wanted = await event_loop.run_host_code(compact, self.run.session, list(items))
        if inspect.isawaitable(wanted):
            wanted = await wanted
        if wanted is None:
            return items
        kept: list[Any] = to_jsonable(list(wanted), "items")
        await event_loop.run_sync(self._store_compacted, kept)
        return kept

    def _store_compacted(self, items: list[Any]) -> None:
        session = self.run.session
        assert session is not None, "Only a conversation has a history."
        last = session.item_count
        with fenced_writes.fenced(self.attempt):
            fenced_writes.update_run(self.attempt)
            mine = AgentSession.objects.using(database()).filter(pk=session.pk)
            mine.update(compacted_items=items, compacted_through=last)
        session.compacted_items, session.compacted_through = items, last

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
        return await sync_to_async(read_items)(self.session, limit)

    async def add_items(self, items: list[Any]) -> None:
        """Write items at the end."""
        await sync_to_async(append_items)(self.session, to_jsonable(items, "items"))

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
    """Return a user's session for use with the SDK, created if it does not exist.

    Raises BadInput for an invalid key.
    """
    session, _ = get_or_create_session(session_key, owner, tenant)
    return ItemStore(session)
