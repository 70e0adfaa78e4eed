"""What a person sees of a run while it goes on, made from its row and its events."""

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
    """The part of ``AgentRun`` that its fragment reads; costs no query after ``with_steps``."""

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
        """What a reader shows now; another value means that there is something new."""
        return f"{self.stamp}-{self._tens()}-{len(self.draft)}"

    @property
    def stamp(self) -> str:
        """The part of ``version`` that a stream tells of."""
        place = getattr(self, "place", None)
        return state_stamp(self.status, self.attempt, self.event_count, place, late=self._is_late())

    def _is_late(self) -> bool:
        ends = self.lease_ends_at
        return self.status == Status.RUNNING and isinstance(ends, datetime) and ends < self.read_at

    @property
    def read_at(self) -> datetime:
        """When the row was read, by the database's clock where it was asked for."""
        return getattr(self, "seen_at", None) or timezone.now()

    def _tens(self) -> str:
        """Return for how many tens of seconds it has run; that is shown, and is never written."""
        if self.status != Status.RUNNING or not isinstance(self.started_at, datetime):
            return ""
        return f"{(self.read_at - self.started_at) // timedelta(seconds=10)}"

    @cached_property
    def draft(self) -> str:
        """What the model has said so far of a message that is not complete; or ``""``.

        A later attempt's takes the place of what an earlier one had begun to say.
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
        """The tool calls so far, oldest first: name, arguments, call_id, output once known."""
        return _paired([payload for kind, payload in self._seen if kind.startswith("tool.")])

    @cached_property
    def texts(self) -> list[str]:
        """What the agent has said so far, oldest first; its answer is the last, if it is text."""
        return [payload["text"] for kind, payload in self._seen if kind == "message"]

    @cached_property
    def stages(self) -> list[dict[str, Any]]:
        """The steps of a pipeline so far, in the order of their first events.

        Each is what its events said, the later over the earlier, with ``state``: started,
        completed, failed, retrying or skipped.
        """
        stages: dict[str, dict[str, Any]] = {}
        for kind, payload in self._seen:
            if kind.startswith("step."):
                known = stages.setdefault(payload["step_name"], {})
                known.update(payload, state=kind.removeprefix("step."))
        return list(stages.values())

    @cached_property
    def progress(self) -> dict[str, Any] | None:
        """The last that was said of progress: progress_percent and description; or None."""
        said = [payload for kind, payload in self._seen if kind == "progress.update"]
        return said[-1] if said else None

    @property
    def stopped_by(self) -> str:
        """Who stopped it last: owner, staff or other."""
        said = [payload for kind, payload in self._seen if kind == "run.cancelled"]
        last = said[-1] if said else {}
        if last.get("by_owner") is True:
            return "owner"
        return "staff" if last.get("by") == "staff" else "other"

    @property
    def told(self) -> list[tuple[str, dict[str, Any]]]:
        """The types and payloads of the events from which a fragment is made, in order."""
        return self._seen

    @cached_property
    def _seen(self) -> list[tuple[str, dict[str, Any]]]:
        """The types and payloads of the events that a fragment can show, in order."""
        return [
            (kind, _plain(payload)) for kind, payload in self._told() if _is_whole(kind, payload)
        ]

    def _told(self) -> list[tuple[str, Any]]:
        if hasattr(self, "step_events"):
            numbered = serialization.loads(f"[{self.step_events or ''}]")
            inorder = sorted(numbered, key=lambda event: event[0])
            return since_last_restart([(kind, payload) for _, kind, payload in inorder])
        shown = self.events.filter(FRAGMENT_EVENTS)
        return since_last_restart(
            list(shown.order_by("sequence").values_list("event_type", "payload"))
        )


def since_last_restart(told: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """Return, of the types and payloads of events in order, those since it was started again."""
    begins = [
        n
        for n, (kind, payload) in enumerate(told)
        if kind == "run.retrying" and payload.get("anew")
    ]
    return told[begins[-1] + 1 :] if begins else told


def state_stamp(status: str, attempt: int, events: int, place: int | None, *, late: bool) -> str:
    """Return what names a state of a run; another value means that there is something new."""
    return f"{status}-{attempt}-{events}-{place or 0}{'-late' * late}"


def latest_draft(drafts: Iterable[tuple[int, int, str]]) -> str:
    """Return the text of the last attempt's drafts, given as (attempt, id, text)."""
    rows = sorted((attempt, pk, text) for attempt, pk, text in drafts)
    return "\n\n".join(text for attempt, _, text in rows if attempt == rows[-1][0])


_NAMED_BY = {"message": "text", "tool": "call_id", "step": "step_name"}
"""The text without which an event cannot be shown, by how its type begins."""

_NUMBERS = ("total_steps", "attempt", "max_attempts", "attempts", "duration_seconds")


def _is_whole(kind: str, payload: Any) -> bool:
    """Whether an event has what it is shown by; a host may write any payload to any type."""
    if not isinstance(payload, dict):
        return False
    name = _NAMED_BY.get(kind.partition(".")[0])
    return name is None or isinstance(payload.get(name), str)


def _plain(payload: dict[str, Any]) -> dict[str, Any]:
    """Return a payload without what should be a number and is none."""
    return {k: v for k, v in payload.items() if k not in _NUMBERS or _is_number(v)}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < _MOST


_MOST = 10**12


def _paired(payloads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    calls: dict[str, dict[str, Any]] = {}
    for payload in payloads:
        calls.setdefault(payload["call_id"], {}).update(payload)
    return list(calls.values())
