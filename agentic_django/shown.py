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
        return _paired([payload for _, payload in self._seen if "call_id" in payload])

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
        """The types and payloads of the events that a fragment shows, in order."""
        if hasattr(self, "step_events"):
            numbered = serialization.loads(f"[{self.step_events or ''}]")
            inorder = sorted(numbered, key=lambda event: event[0])
            return of_this_generation([(kind, payload) for _, kind, payload in inorder])
        shown = self.events.filter(visibility=Visibility.USER, event_type__in=STEP_EVENTS)
        return of_this_generation(
            list(shown.order_by("sequence").values_list("event_type", "payload"))
        )


def of_this_generation(told: list[tuple[str, dict[str, Any]]]) -> list[tuple[str, dict[str, Any]]]:
    """Return, of the types and payloads of events in order, those since it was started again."""
    begins = [
        n
        for n, (kind, payload) in enumerate(told)
        if kind == "run.retrying" and payload.get("anew")
    ]
    return told[begins[-1] + 1 :] if begins else told


def _paired(payloads: list[dict[str, Any]]) -> list[dict[str, Any]]:
    calls: dict[str, dict[str, Any]] = {}
    for payload in payloads:
        calls.setdefault(payload["call_id"], {}).update(payload)
    return list(calls.values())
