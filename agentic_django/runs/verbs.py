"""What is written to a run from outside of its attempt; fenced by the run's status."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import timedelta
from typing import Any

from django.db import models, transaction
from django.db.models import F
from django.db.models.functions import Now
from django.utils.translation import gettext_lazy as _

from agentic_django import events, slots
from agentic_django.events import Event
from agentic_django.exceptions import Conflict
from agentic_django.models import ACTIVE, AgentRun, database
from agentic_django.runs.transitions import TRANSITIONS, rows

__all__ = [
    "WATCH_SECONDS",
    "hold_waiting",
    "move",
    "note",
    "refuse_unless_waiting",
    "watch",
]

Status = AgentRun.Status


def hold_waiting(run: AgentRun) -> bool:
    """Keep others from writing a waiting run until the transaction ends; reads the row again.

    False if the run does not wait any more.
    """
    waiting = rows().filter(pk=run.pk, status=Status.WAITING)
    is_held = bool(waiting.update(updated_at=Now()))
    run.refresh_from_db()
    return is_held


def refuse_unless_waiting(run: AgentRun) -> None:
    """Raise Conflict, which says where the run stands, for a decision that comes too late."""
    if run.status != Status.WAITING:
        raise Conflict(_REFUSED["decide"] % {"status": run.get_status_display()})


def note(run: AgentRun, drafts: Sequence[Event]) -> None:
    """Write events of a waiting run that stays so, behind ``hold_waiting``: nobody performs it."""
    drafts = events.wanted(drafts)
    rows().filter(pk=run.pk).update(event_count=F("event_count") + len(drafts))
    run.refresh_from_db()
    events.append(run, drafts)


_REFUSED: dict[str, Any] = {
    "decide": _("This run does not wait for a decision: it is %(status)s now."),
    "cancel": _("Cannot cancel this run: it is %(status)s now."),
    "retry": _("Cannot retry this run: it is %(status)s now."),
}
"""What a person reads whose verb came too late."""


def move(
    run: AgentRun,
    verb: str,
    drafts: Sequence[Event] = (),
    guard: models.Q | None = None,
    **changes: Any,
) -> None:
    """Move a run from outside its attempt, whoever holds it; reads the row again.

    Raises Conflict if the run is no longer in a state from which the verb leads. With a guard
    it also does if that does not hold, or if another transaction is just writing the run.
    """
    step, drafts = TRANSITIONS[verb], events.wanted(drafts)
    changes |= {"status": step.target, "event_count": F("event_count") + len(drafts)}
    movable = rows().filter(guard or models.Q(), pk=run.pk, status__in=step.sources)
    if guard is not None:
        movable = movable.unlocked()
    with transaction.atomic(using=database()):
        if not movable.update(**changes, updated_at=Now()):
            run.refresh_from_db()
            text = _REFUSED.get(verb, f"Cannot {verb} this run: it is %(status)s now.")
            raise Conflict(text % {"status": run.get_status_display()})
        run.refresh_from_db()
        events.append(run, drafts)
        slots.release([run])


WATCH_SECONDS = 30.0
"""For how long a run counts as watched once somebody said so."""


def watch(ids: Collection[Any]) -> None:
    """Note that somebody watches these runs: what their models say is then written often.

    A row that is just being written is left for the next time.
    """
    soon = Now() + timedelta(seconds=WATCH_SECONDS / 2)
    unnoted = models.Q(watched_until__isnull=True) | models.Q(watched_until__lt=soon)
    active = rows().filter(unnoted, pk__in=ids, status__in=ACTIVE)
    with transaction.atomic(using=database()):
        active.unlocked().update(watched_until=Now() + timedelta(seconds=WATCH_SECONDS))
