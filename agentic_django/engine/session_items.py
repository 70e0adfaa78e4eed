"""Reads and writes the items of a session."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain, count
from typing import Any

from django.db import transaction
from django.db.models import F
from django.db.models.functions import Now

from agentic_django.concurrency.batching import WouldBlock
from agentic_django.models import AgentRun, AgentSession, AgentSessionItem, database
from agentic_django.models.querysets import skip_locked_rows

__all__ = [
    "append_items",
    "append_run_items",
    "delete_run_items",
    "read_items",
    "with_unique_call_ids",
]


def read_items(session: AgentSession, limit: int | None = None, **only: Any) -> list[Any]:
    """Return the items of a session, oldest first. With ``limit``, return the latest items."""
    rows = AgentSessionItem.objects.using(database()).filter(session=session, **only)
    if limit is None:
        return list(rows.order_by("sequence").values_list("payload", flat=True))
    latest = rows.order_by("-sequence").values_list("payload", flat=True)[: max(limit, 0)]
    return list(latest)[::-1]


def with_unique_call_ids(items: Iterable[Any]) -> list[Any]:
    """Return the items of a history, in which no two calls have the same id.

    The ids of a provider, or of a host's own code, may be unique within one response only. The SDK
    drops the older of two calls with the same id.
    """
    used: set[str] = set()
    open_calls: defaultdict[str, deque[str]] = defaultdict(deque)
    return [_with_own_call_id(item, used, open_calls) for item in items]


def _with_own_call_id(item: Any, used: set[str], open_calls: Mapping[str, deque[str]]) -> Any:
    given = item.get("call_id") if isinstance(item, dict) else None
    if not isinstance(given, str):
        return item
    if str(item.get("type", "")).endswith("_output"):
        calls = open_calls[given]
        own = calls.popleft() if calls else given
    else:
        ids = chain([given], (f"{given[:56]}-{number}" for number in count(2)))
        own = next(each for each in ids if each not in used)
        used.add(own)
        open_calls[given].append(own)
    return item if own == given else {**item, "call_id": own}


def append_items(session: AgentSession, items: Sequence[Any], run: AgentRun | None = None) -> None:
    """Append items to a session, in one transaction."""
    _append([(session, items, run)])


def append_run_items(
    added: Sequence[tuple[AgentRun, Sequence[Any]]], *, waits: bool = True
) -> None:
    """Append the items of runs to their sessions. Runs without a session are skipped.

    With ``waits=False``, raises WouldBlock if another transaction has locked a session.
    """
    _append(
        [(run.session, items, run) for run, items in added if run.session is not None],
        waits=waits,
    )


def _append(
    added: Sequence[tuple[AgentSession, Sequence[Any], AgentRun | None]], *, waits: bool = True
) -> None:
    added = [each for each in added if each[1]]
    if not added:
        return
    with transaction.atomic(using=database()):
        if waits:
            for session, items, _ in added:  # The query also reads the counter of runs.
                session.item_count = F("item_count") + len(items)
                session.run_count = F("run_count")
                session.updated_at = Now()
                session.save(update_fields=["item_count", "run_count", "updated_at"])
        else:
            _reserve_unlocked({session: len(items) for session, items, _ in added})
        rows = [
            AgentSessionItem(session=session, sequence=sequence, payload=item, run=run)
            for session, items, run in added
            for sequence, item in enumerate(items, session.item_count - len(items) + 1)
        ]
        AgentSessionItem.objects.using(database()).bulk_create(rows)


def _reserve_unlocked(counts: dict[AgentSession, int]) -> None:
    """Increase the item counters of sessions that no other transaction has locked.

    Raises WouldBlock if another transaction has locked a session.
    """
    table = AgentSession.objects.using(database())
    free = skip_locked_rows(table.filter(pk__in=[session.pk for session in counts]))
    present = {pk: both for pk, *both in free.values_list("pk", "item_count", "run_count")}
    if len(present) < len(counts):
        raise WouldBlock
    for added in set(counts.values()):
        mine = table.filter(pk__in=[each.pk for each, own in counts.items() if own == added])
        mine.update(item_count=F("item_count") + added, updated_at=Now())
    for session, added in counts.items():
        items, session.run_count = present[session.pk]
        session.item_count = items + added


def delete_run_items(run: AgentRun) -> None:
    """Delete the items that a run added, because a person retries it."""
    AgentSessionItem.objects.using(database()).filter(run=run).delete()
