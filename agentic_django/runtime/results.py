"""The result of a run, and the messages that it adds to the conversation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from agentic_django.runtime.messages import run_input_items, to_input_items

__all__ = ["RunResult", "items_after_input", "messages_of_input"]


@dataclass(frozen=True, slots=True)
class RunResult:
    """The result of a run.

    ``final_output`` is any JSON value. ``final_messages`` are in the chat format or are SDK items.
    They are added to the conversation after the run's input. If they repeat the input, only the
    messages after it are added. Without ``final_messages``, a string output is added as the agent's
    message. Raises BadInput if a message is invalid.
    """

    final_output: Any = None
    final_messages: Sequence[Any] = field(default_factory=tuple)

    def __post_init__(self) -> None:
        to_input_items(self.final_messages)


def messages_of_input(payload: Any) -> list[Any]:
    """Return a run's input, which is a string or a list of messages, as a list of messages."""
    return [{"role": "user", "content": payload}] if isinstance(payload, str) else list(payload)


def items_after_input(messages: Sequence[Any], result: RunResult) -> tuple[list[Any], list[Any]]:
    """Return the SDK's items of a run's input, and the items of its result without that input."""
    given = run_input_items(messages)
    items = to_input_items(result.final_messages, system=True)
    n = len(given)
    for start in range(len(items) - n, -1, -1):
        if n and items[start : start + n] == given:
            return given, items[start + n :]
    return given, items
