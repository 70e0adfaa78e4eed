"""Creates, renames, archives and deletes sessions, and cancels their unfinished runs.

The items of a session are written by ``session_items``, its run counter by ``models.sessions``.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from typing import Any

from django.db import transaction
from django.db.models.functions import Now

from agentic_django import signals
from agentic_django.engine import lifecycle
from agentic_django.engine.run_rows import run_rows
from agentic_django.exceptions import Conflict
from agentic_django.models import ACTIVE, AgentSession, check_session_key, database, new_session_key
from agentic_django.permissions import principal_of

__all__ = [
    "archive_session",
    "cancel_unfinished_runs",
    "delete_session",
    "get_or_create_session",
    "interrupt_session",
    "rename_session",
]


def get_or_create_session(
    session_key: str | None, owner: Any, tenant: str = "", **columns: Any
) -> tuple[AgentSession, bool]:
    """Return the owner's session with a key, and whether it was created.

    Without a key, create a session with a new key. ``columns`` are set only on a new session.
    Raises BadInput if the key is invalid. Sends ``agent_session_created`` on commit.
    """
    identity = {"tenant": tenant, "principal": principal_of(owner)}
    columns["owner"] = owner
    if session_key is None:
        session, is_new = AgentSession(**identity, **columns, session_key=new_session_key()), True
        session.save(using=database(), force_insert=True)
    else:
        check_session_key(session_key)
        session, is_new = AgentSession.objects.using(database()).get_or_create(
            **identity, session_key=session_key, defaults=columns
        )
    if is_new:
        send = partial(signals.announce, signals.agent_session_created, AgentSession)
        transaction.on_commit(partial(send, session=session), using=database(), robust=True)
    return session, is_new


def cancel_unfinished_runs(session: AgentSession, by: str = "", *, by_owner: bool = False) -> None:
    """Cancel all unfinished runs of a session, in the caller's transaction.

    The last run is cancelled first, so that none of the others starts in between. All runs are
    locked before the session, in the order in which a worker locks them.
    """
    unfinished = run_rows().filter(session=session, status__in=ACTIVE)
    for run in list(unfinished.select_for_update().order_by("-position")):
        with suppress(Conflict):  # The run has ended.
            lifecycle.cancel(run, by, by_owner=by_owner)


def interrupt_session(session: AgentSession, *, by_owner: bool = False) -> int:
    """Cancel all unfinished runs of a session, and return the position of its next run.

    Another process may submit or retry a run before this one has locked the session. Then all
    locks are released and acquired again in their order: workers lock a run before its session.
    """
    unfinished = run_rows().filter(session=session, status__in=ACTIVE)
    while True:
        with transaction.atomic(using=database()):
            cancel_unfinished_runs(session, by_owner=by_owner)
            position = session.reserve_position()
            if not unfinished.exists():
                return position
            transaction.set_rollback(True, using=database())  # To the savepoint of this block.


def delete_session(session: AgentSession, *, by: str = "") -> None:
    """Cancel the unfinished runs of a session, and delete it with its items and runs.

    ``by`` is the name of the person who deletes it.
    """
    with transaction.atomic(using=database()):
        cancel_unfinished_runs(session, by)
        AgentSession.objects.using(database()).filter(pk=session.pk).delete()


def rename_session(session: AgentSession, title: str) -> None:
    """Change the title of a session. A title has at most 255 characters."""
    _update(session, title=title)


def archive_session(session: AgentSession, *, archived: bool = True) -> None:
    """Archive or unarchive a session. New runs may be submitted to an archived session."""
    _update(session, archived_at=Now() if archived else None)


def _update(session: AgentSession, **columns: Any) -> None:
    """Write columns, but not ``updated_at``, which is the time of the last use."""
    AgentSession.objects.using(database()).filter(pk=session.pk).update(**columns)
    session.refresh_from_db(fields=columns)
