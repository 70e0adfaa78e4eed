"""Turns runs and session items into the messages, tool calls and turns of a conversation."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from django.db.models import Count, Q

from agentic_django.models import AgentRun, AgentSession, AgentSessionItem, database
from agentic_django.models.querysets import RunQuerySet, usage_sum
from agentic_django.presentation import wording
from agentic_django.presentation.images import image_numbers
from agentic_django.presentation.outputs import (
    Output,
    cell,
    cut,
    is_of_steps,
    is_record,
    joined_parts,
    parsed,
    readable,
    shortened,
)
from agentic_django.presentation.wording import in_words
from agentic_django.serialization import printable

__all__ = [
    "Message",
    "Output",
    "Piece",
    "ToolCard",
    "Turns",
    "agent_name",
    "by_day",
    "input_messages",
    "messages",
    "pieces",
    "tokens_and_cost",
    "tool_calls",
    "turns",
    "turns_after",
]

MAX_TURNS = 100
MAX_ITEMS = 500


@dataclass(frozen=True, slots=True)
class ToolCard:
    """A tool call: its arguments and its output."""

    call_id: str
    name: str
    arguments: Any = None
    output: Any = None
    has_output: bool = False
    seconds: float | None = None

    @property
    def summary(self) -> str:
        """The first argument with a value, shortened to one line. A number includes its name."""
        given = self.arguments if isinstance(self.arguments, dict) else {"": self.arguments}
        for name, value in given.items():
            if isinstance(value, bool) or value in (None, "", [], {}):
                continue
            if isinstance(value, int | float):
                return cut(f"{name} {value}".replace("_", " ").strip())
            if isinstance(value, str):
                return cut(readable(value))
        return ""

    @property
    def arguments_text(self) -> str:
        """All arguments as text, one per line if they are simple values."""
        if self.arguments in (None, "", {}):
            return ""
        if not is_record(self.arguments):
            return shortened(readable(self.arguments))
        lines = [f"{name}: {cell(value)}" for name, value in self.arguments.items()]
        return shortened(printable("\n".join(lines)))

    @property
    def images(self) -> list[int]:
        """The numbers, from 1, of the images in the output."""
        return image_numbers(self.call_id, self.output)

    @property
    def output_text(self) -> str:
        """The output as text."""
        return shortened(readable(self.output))


@dataclass(frozen=True, slots=True)
class Message:
    """One message of a conversation. ``kind`` is user, assistant, refusal, reasoning or tool."""

    kind: str
    text: str = ""
    call: ToolCard | None = None


@dataclass(frozen=True, slots=True)
class Piece:
    """One action of an agent before its answer: ``kind`` is text, tool, reasoning or handoff."""

    kind: str
    text: str = ""
    call: ToolCard | None = None


@dataclass(frozen=True, slots=True)
class Turns:
    """The messages of a conversation without a run, then one turn for each run.

    ``is_cut`` says whether earlier turns are left out.
    """

    messages: Sequence[Message]
    runs: Sequence[AgentRun]
    is_cut: bool = False


# Conversations


def turns(session: AgentSession) -> Turns:
    """Return the last turns of a conversation, oldest first, in two queries."""
    runs = AgentRun.objects.using(database()).filter(session=session)
    latest = runs.with_queue_position().with_steps().order_by("-position")[: MAX_TURNS + 1]
    shown = list(latest)[:MAX_TURNS][::-1]
    for run in shown:
        run.session = session
    if len(latest) > MAX_TURNS:
        return Turns([], shown, is_cut=True)
    items = AgentSessionItem.objects.using(database()).filter(session=session, run=None)
    payloads = items.order_by("-sequence").values_list("payload", flat=True)[:MAX_ITEMS]
    return Turns(messages(list(payloads)[::-1]), shown)


def turns_after(runs: RunQuerySet, position: int) -> list[AgentRun]:
    """Return the turns of a conversation after a position, oldest first, in one query."""
    found = (
        runs.filter(position__gt=position)
        .select_related("session")
        .with_queue_position()
        .with_steps()
    )
    return list(found.order_by("-position")[:MAX_TURNS])[::-1]


def by_day(sessions: Sequence[AgentSession]) -> list[tuple[str, list[AgentSession]]]:
    """Group conversations by the day of their last use, in the same order."""
    days = groupby(sessions, key=lambda session: wording.day(session.updated_at))
    return [(day, list(found)) for day, found in days]


def tokens_and_cost(session: AgentSession) -> tuple[int, float | None]:
    """Return the tokens that a conversation's runs used, and the cost in US dollars if known."""
    runs = AgentRun.objects.using(database()).filter(session=session)
    found = runs.aggregate(
        tokens=usage_sum("total_tokens"),
        dollars=usage_sum("cost_usd"),
        unpriced=Count("pk", filter=Q(usage__requests__gt=0, usage__cost_usd__isnull=True)),
    )
    return round(found["tokens"] or 0), None if found["unpriced"] else found["dollars"]


def input_messages(run: AgentRun) -> list[Message]:
    """Return the input of a run as messages."""
    value = run.input_payload
    if isinstance(value, str):
        return [Message("user", printable(value))] if value.strip() else []
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return messages(value)
    return [Message("user", readable(value))]


def tool_calls(run: AgentRun) -> list[ToolCard]:
    """Return the run's tool calls so far, oldest first."""
    return [
        ToolCard(
            call_id=str(step.get("call_id", "")),
            name=printable(str(step.get("tool", ""))),
            arguments=step.get("arguments"),
            output=step.get("output"),
            has_output="output" in step,
            seconds=step.get("duration_seconds"),
        )
        for step in run.steps
    ]


def texts_before_answer(run: AgentRun) -> list[Output]:
    """Return the texts of the agent before its answer."""
    texts = run.texts
    if run.status == AgentRun.Status.COMPLETED and texts:
        if is_of_steps(run):
            texts = [text for text in texts if text not in run.final_output.values()]
        elif run.final_output in (texts[-1], parsed(texts[-1])):
            texts = texts[:-1]
    return [Output("text", printable(text)) for text in texts if text.strip()]


def pieces(run: AgentRun) -> list[Piece]:
    """Return the texts, reasoning, tool calls and handoffs of the agent, in order.

    The answer, empty texts and the start of the first agent are left out.
    """
    calls = {call.call_id: call for call in tool_calls(run)}
    texts = [output.text for output in texts_before_answer(run)]
    found: list[Piece] = []
    agent: str | None = None
    for kind, payload in run.shown_events:
        match kind:
            case "message" if texts and printable(payload["text"]) == texts[0]:
                found.append(Piece("text", texts.pop(0)))
            case "reasoning" if text := printable(str(payload.get("summary") or "")).strip():
                found.append(Piece("reasoning", text))
            case "agent.updated":
                name = in_words(printable(str(payload.get("agent", ""))))
                if agent not in (None, name):
                    found.append(Piece("handoff", name))
                agent = name
            case "tool.called" | "tool.output":  # A call is shown at its first event.
                if call := calls.pop(str(payload.get("call_id", "")), None):
                    found.append(Piece("tool", call=call))
    return found


def agent_name(run: AgentRun) -> str:
    """Return the name of a run's agent: the agent key in words."""
    return in_words(run.agent_key)


# Items


def messages(items: Iterable[Any]) -> list[Message]:
    """Return the messages of items in the SDK's input format, oldest first.

    A call and its output become one message. System and developer messages, and items without
    readable text, are left out.
    """
    found: list[Message] = []
    calls: dict[str, int] = {}
    for item in items:
        if not isinstance(item, dict):
            continue
        if str(item.get("type", "")).endswith("_call_output"):
            index = calls.get(str(item.get("call_id")))
            if index is not None and (call := found[index].call):
                call = replace(call, output=item.get("output"), has_output=True)
                found[index] = Message("tool", call=call)
        elif message := _message(item):
            if message.call:
                calls[message.call.call_id] = len(found)
            found.append(message)
    return found


def _message(item: dict[str, Any]) -> Message | None:
    """Return the message of an item, or None if the item has nothing to show."""
    kind = str(item.get("type") or "message")
    if kind == "reasoning":
        text = joined_parts(item.get("summary"))
        return Message("reasoning", text) if text else None
    if kind.endswith("_call"):
        call = ToolCard(
            call_id=str(item.get("call_id") or item.get("id") or ""),
            name=printable(str(item.get("name") or kind.removesuffix("_call"))),
            arguments=parsed(item.get("arguments", item.get("input", item.get("action")))),
            output=item.get("output"),
            has_output=kind not in ("function_call", "custom_tool_call"),
        )
        return Message("tool", call=call)
    role, content = str(item.get("role")), item.get("content")
    if kind != "message" or role not in ("user", "assistant"):
        return None
    text = joined_parts(content)
    parts = content if isinstance(content, list) else []
    is_refusal = any(isinstance(part, dict) and part.get("type") == "refusal" for part in parts)
    if role == "assistant" and is_refusal:
        return Message("refusal", text)
    return Message(role, text) if text else None
