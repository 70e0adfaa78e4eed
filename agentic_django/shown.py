"""What a person sees of a run while it goes on, made from its row and its events."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from django.utils import timezone
from django.utils.functional import cached_property

from agentic_django import serialization
from agentic_django.querysets import STEP_EVENTS
from agentic_django.states import Status, Visibility

__all__ = ["Shown"]


class Shown:
    """The part of ``AgentRun`` that its fragment reads; costs no query after ``with_steps``."""

    if TYPE_CHECKING:
        status: str
        attempt: int
        event_count: int
        started_at: datetime | None
        lease_ends_at: datetime | None
        step_events: str | None
        events: Any

    @property
    def version(self) -> str:
        """What a reader shows now; another value means that there is something new."""
        place = getattr(self, "place", None) or 0
        return f"{self.status}-{self.attempt}-{self.event_count}-{place}-{self._tens()}"

    @property
    def read_at(self) -> datetime:
        """When the row was read, by the database's clock where it was asked for."""
        return getattr(self, "seen_at", None) or timezone.now()

    def _tens(self) -> str:
        """Return for how many tens of seconds it has run, and whether its lease has ended.

        Both are shown, and change without a write.
        """
        if self.status != Status.RUNNING or self.started_at is None:
            return ""
        now = self.read_at
        late = self.lease_ends_at is not None and self.lease_ends_at < now
        return f"{(now - self.started_at) // timedelta(seconds=10)}{'late' * late}"

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

    @cached_property
    def _seen(self) -> list[tuple[str, dict[str, Any]]]:
        """The types and payloads of the events that a fragment can show, in order."""
        return [
            (kind, _plain(payload)) for kind, payload in self._told() if _is_whole(kind, payload)
        ]

    def _told(self) -> list[tuple[str, Any]]:
        if hasattr(self, "step_events"):
            numbered = serialization.loads(f"[{self.step_events or ''}]")
            return [(kind, payload) for _, kind, payload in sorted(numbered, key=lambda e: e[0])]
        shown = self.events.filter(visibility=Visibility.USER, event_type__in=STEP_EVENTS)
        return list(shown.order_by("sequence").values_list("event_type", "payload"))


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
