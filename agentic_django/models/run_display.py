"""The attributes of a run from which templates show it, read from its row and its events."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.utils import timezone
from django.utils.functional import cached_property

from agentic_django import serialization
from agentic_django.models.choices import ACTIVE, Status
from agentic_django.models.querysets import FRAGMENT_EVENTS

__all__ = ["RunDisplay", "latest_draft", "state_stamp"]


class RunDisplay:
    """The attributes of ``AgentRun`` that a run's fragment reads.

    A run that was loaded with ``with_queue_position().with_steps()`` needs no further query.
    """

    if TYPE_CHECKING:
        status: str
        attempt: int
        event_count: int
        started_at: datetime | None
        lease_ends_at: datetime | None
        step_events: str | None
        draft_texts: str | None
        drafts: Any
        events: Any

    @property
    def version(self) -> str:
        """The version of the run's fragment. It changes when the fragment does.

        The running time, in tens of seconds, is a part of it: it is shown, but not stored.
        """
        seconds: int | str = ""
        if self.status == Status.RUNNING and isinstance(self.started_at, datetime):
            seconds = (self.read_at - self.started_at) // timedelta(seconds=10)
        return f"{self.stamp}-{seconds}-{len(self.draft)}"

    @property
    def stamp(self) -> str:
        """The part of ``version`` that live updates report."""
        return state_stamp(
            self.status,
            self.attempt,
            self.event_count,
            getattr(self, "queue_position", None),
            late=self.is_orphaned,
        )

    @property
    def is_orphaned(self) -> bool:
        """Whether the run is running and its lease has expired: its worker died."""
        ends = self.lease_ends_at
        return self.status == Status.RUNNING and isinstance(ends, datetime) and ends < self.read_at

    @property
    def read_at(self) -> datetime:
        """The time at which the row was read: the database's if the query annotated it."""
        return getattr(self, "database_time", None) or timezone.now()

    @cached_property
    def draft(self) -> str:
        """The partial message of a run, or ``""``.

        The partial message of a later attempt replaces that of an earlier one.
        """
        if self.status not in ACTIVE:
            return ""
        if hasattr(self, "draft_texts"):
            rows = serialization.loads(f"[{self.draft_texts or ''}]")
        else:
            rows = list(self.drafts.values_list("attempt", "pk", "text"))
        return latest_draft(rows)

    @cached_property
    def steps(self) -> list[dict[str, Any]]:
        """The tool calls so far, oldest first: tool, arguments, call_id, and output if known."""
        calls: dict[str, dict[str, Any]] = {}
        for kind, payload in self.shown_events:
            if kind.startswith("tool."):
                calls.setdefault(payload["call_id"], {}).update(payload)
        return list(calls.values())

    @cached_property
    def texts(self) -> list[str]:
        """The agent's messages so far, oldest first. A text answer is the last of them."""
        return [payload["text"] for kind, payload in self.shown_events if kind == "message"]

    @cached_property
    def stages(self) -> list[dict[str, Any]]:
        """The steps of a pipeline so far, in the order of their first events.

        Each has the fields of its events, where later events take precedence, and ``state``:
        started, completed, failed, retrying or skipped.
        """
        stages: dict[str, dict[str, Any]] = {}
        for kind, payload in self.shown_events:
            if kind.startswith("step."):
                known = stages.setdefault(payload["step_name"], {})
                known.update(payload, state=kind.removeprefix("step."))
        return list(stages.values())

    @cached_property
    def progress(self) -> dict[str, Any] | None:
        """The latest progress, with progress_percent and description, or None."""
        return self._last_payload("progress.update")

    @property
    def stopped_by(self) -> str:
        """The person who cancelled the run last: owner, staff or other."""
        cancellation = self._last_payload("run.cancelled") or {}
        if cancellation.get("by_owner") is True:
            return "owner"
        return "staff" if cancellation.get("by") == "staff" else "other"

    def _last_payload(self, event_type: str) -> dict[str, Any] | None:
        payloads = [payload for kind, payload in self.shown_events if kind == event_type]
        return payloads[-1] if payloads else None

    @cached_property
    def shown_events(self) -> list[tuple[str, dict[str, Any]]]:
        """The types and payloads of the events that a fragment shows, oldest first."""
        if hasattr(self, "step_events"):
            numbered = serialization.loads(f"[{self.step_events or ''}]")
        else:
            rows = self.events.filter(FRAGMENT_EVENTS)
            numbered = rows.values_list("sequence", "event_type", "payload")
        in_order = sorted(numbered, key=lambda event: event[0])
        return [
            (kind, _without_wrong_numbers(payload))
            for kind, payload in since_last_restart([(kind, what) for _, kind, what in in_order])
            if _can_be_shown(kind, payload)
        ]


def since_last_restart(
    events: list[tuple[str, dict[str, Any]]],
) -> list[tuple[str, dict[str, Any]]]:
    """Return the events after the last time a person restarted the run; all if none did.

    ``events`` are pairs of type and payload, oldest first.
    """
    restarts = [
        index
        for index, (kind, payload) in enumerate(events)
        if kind == "run.retrying" and payload.get("anew")
    ]
    return events[restarts[-1] + 1 :] if restarts else events


def state_stamp(
    status: str, attempt: int, events: int, queue_position: int | None, *, late: bool
) -> str:
    """Return a text that identifies the state of a run. It changes when the run does."""
    return f"{status}-{attempt}-{events}-{queue_position or 0}{'-late' * late}"


def latest_draft(drafts: Iterable[tuple[int, int, str]]) -> str:
    """Return the text of the last attempt's drafts, given as (attempt, id, text)."""
    rows = sorted((attempt, pk, text) for attempt, pk, text in drafts)
    return "\n\n".join(text for attempt, _, text in rows if attempt == rows[-1][0])


_REQUIRED_TEXT = {"message": "text", "tool": "call_id", "step": "step_name"}
"""The field without which an event cannot be shown, by the first part of its type."""

_NUMERIC_FIELDS = ("total_steps", "attempt", "max_attempts", "attempts", "duration_seconds")
_LARGEST_NUMBER = 10**12


def _can_be_shown(kind: str, payload: Any) -> bool:
    """Whether an event has the field that it is shown by.

    The host's code may write any payload with any type.
    """
    if not isinstance(payload, dict):
        return False
    name = _REQUIRED_TEXT.get(kind.partition(".")[0])
    return name is None or isinstance(payload.get(name), str)


def _without_wrong_numbers(payload: dict[str, Any]) -> dict[str, Any]:
    """Return a payload without the numeric fields whose value is not a usable number."""

    def is_usable(value: Any) -> bool:
        return isinstance(value, int | float) and abs(value) < _LARGEST_NUMBER

    return {k: v for k, v in payload.items() if k not in _NUMERIC_FIELDS or is_usable(v)}
