"""Implements the ``Session`` protocol of the Agents SDK over session items.

A run reads the history as it was when the run started. The items that the run adds are buffered,
and the transaction that ends the run writes them. So each attempt starts from the same history.
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
from agentic_django.engine.session_items import (
    append_items,
    read_items,
    with_unique_call_ids,
)
from agentic_django.engine.sessions import get_or_create_session
from agentic_django.models import AgentRun, AgentSession, database
from agentic_django.serialization import to_jsonable

if TYPE_CHECKING:
    from agents.memory import SessionSettings

__all__ = ["ItemStore", "RunHistory", "get_session"]


class RunHistory:
    """A session as one run sees it: the items before the run, and the items that the run adds.

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

        The first call reads no more than ``limit`` items. It omits items before the first message
        of a user, because providers refuse the output of a call that is not in the input.
        """
        if self._before is None:
            self._before = await self._begin(limit)
        elif self._limit is not None and (limit is None or limit > self._limit + len(self.added)):
            self._before, self._limit = await event_loop.run_sync(self._read), None
        items = [*self._before, *self.added]
        return items if limit is None else items[len(items) - min(max(limit, 0), len(items)) :]

    async def _begin(self, limit: int | None) -> list[Any]:
        if self._is_fresh:
            return []
        if settings.COMPACT_HISTORY is not None:
            return await self._compacted(load(settings.COMPACT_HISTORY))
        self._limit = limit
        items = await event_loop.run_sync(self._read, limit)
        if limit is None or len(items) < limit:
            return items
        messages = (n for n, item in enumerate(items) if item.get("role") == "user")
        return items[next(messages, 0) :]

    @property
    def _is_fresh(self) -> bool:
        """Whether the session has no items before this run. The claim has read the counter."""
        run = self.run
        return run.session is None or (self.attempt.number == 1 and not run.session.item_count)

    def _read(self, limit: int | None = None) -> list[Any]:
        session = self.run.session
        assert session is not None, "A run without a session has no history."
        only: dict[str, Any] = (
            {"sequence__gt": session.compacted_through} if session.compacted_through else {}
        )
        if self.attempt.number > 1:
            began = AgentRun.objects.using(database()).filter(pk=self.run.pk).values("started_at")
            only["created_at__lte"] = Subquery(began)
        items = read_items(session, limit, **only)
        self._later = len(items)
        if session.compacted_through:
            items = [*(session.compacted_items or ()), *items]
        return with_unique_call_ids(items)

    async def _compacted(self, compact: Callable[..., Any]) -> list[Any]:
        """Return the history as the host's function compacts it, and store it for later runs."""
        items = await event_loop.run_sync(self._read)
        if not self._later:  # An earlier attempt or run has compacted all items.
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
        assert session is not None, "A run without a session has no history."
        last = session.item_count
        with fenced_writes.fenced(self.attempt):
            fenced_writes.update_run(self.attempt)
            mine = AgentSession.objects.using(database()).filter(pk=session.pk)
            mine.update(compacted_items=items, compacted_through=last)
        session.compacted_items, session.compacted_through = items, last

    async def add_items(self, items: list[Any]) -> None:
        """Add items, which the end of the run writes. Raises NotSerializable."""
        self.added += to_jsonable(items, "items")

    async def pop_item(self) -> Any:
        """Remove and return the last item that this run added; None if it added none."""
        return self.added.pop() if self.added else None

    async def clear_session(self) -> None:
        """Remove the items that this run added. Earlier items stay."""
        self.added.clear()


class ItemStore:
    """A session outside of any run. Each call reads or writes the database immediately.

    Implements ``agents.memory.Session``, so that a host's own code can pass it to the SDK.
    """

    session_settings: SessionSettings | None = None

    def __init__(self, session: AgentSession) -> None:
        self.session = session
        self.session_id = session.session_key

    async def get_items(self, limit: int | None = None) -> list[Any]:
        """Return all items, or the last ``limit``, oldest first."""
        return with_unique_call_ids(await sync_to_async(read_items)(self.session, limit))

    async def add_items(self, items: list[Any]) -> None:
        """Append items. Raises NotSerializable."""
        await sync_to_async(append_items)(self.session, to_jsonable(items, "items"))

    async def pop_item(self) -> Any:
        """Delete and return the last item; None if the session is empty."""
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
