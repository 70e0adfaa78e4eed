"""Makes the ids of tool calls unique within a run and its conversation.

A provider's ids may be unique within one response only ("call_0"). But the SDK finds a call's
output and its approval by the id, drops the older of two equal calls from the input, and pages
show one card per id. So a repeated id is replaced in the response, before it is recorded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, count
from typing import Any

__all__ = ["CallIds"]

_CALL_TYPES = ("function_call", "custom_tool_call")
_ITEM_EVENTS = ("response.output_item.added", "response.output_item.done")
_LONGEST_ID = 56  # With a number, the 64 characters that OpenAI accepts.


class CallIds:
    """The ids of the calls in one response.

    ``known`` are the ids of the run so far, to which those of this response are added. Ids in the
    model's input are known too.
    """

    def __init__(self, known: set[str], model_input: Any) -> None:
        self.known = known
        items = model_input if isinstance(model_input, list) else []
        self._in_input = {item.get("call_id") for item in items if isinstance(item, dict)}
        self._own: dict[tuple[str, int], str] = {}
        """The id of the nth call with the same given id."""
        self._counts: Counter[tuple[str, str]] = Counter()

    def made_unique(self, items: Iterable[Any]) -> list[Any]:
        """Return the output items of the whole response, with ids that no other call has."""
        return [self._made_unique(item, "whole") for item in items]

    def made_unique_in_event(self, event: Any) -> Any:
        """Return a stream's event, with ids that no other call has."""
        if event.type in _ITEM_EVENTS:
            item = self._made_unique(event.item, event.type)
            return event if item is event.item else event.model_copy(update={"item": item})
        if event.type == "response.completed":
            items = self.made_unique(event.response.output)
            if _are_same(items, event.response.output):
                return event
            whole = event.response.model_copy(update={"output": items})
            return event.model_copy(update={"response": whole})
        return event

    def release(self) -> None:
        """Forget the ids of a response that was not recorded."""
        self.known -= set(self._own.values())

    def _made_unique(self, item: Any, source: str) -> Any:
        """Return an item; ``source`` is the kind of event that has it, since several do."""
        is_dict = isinstance(item, dict)
        kind = item.get("type") if is_dict else getattr(item, "type", "")
        if kind not in _CALL_TYPES:
            return item
        given = (item.get("call_id") if is_dict else item.call_id) or ""
        self._counts[source, given] += 1
        number = self._counts[source, given]
        if (given, number) not in self._own:
            self._own[given, number] = self._new(given)
        own = self._own[given, number]
        if own == given:
            return item
        return {**item, "call_id": own} if is_dict else item.model_copy(update={"call_id": own})

    def _new(self, given: str) -> str:
        base = given or "call"
        ids = chain([base], (f"{base[:_LONGEST_ID]}-{number}" for number in count(2)))
        own = next(each for each in ids if each not in self.known and each not in self._in_input)
        self.known.add(own)
        return own


def _are_same(items: Sequence[Any], others: Sequence[Any]) -> bool:
    return all(one is other for one, other in zip(items, others, strict=True))
