"""Items and runs to messages: what a person reads of a conversation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from django.db.models import QuerySet
from django.utils.translation import gettext as _

from agentic_django.markup import markdown, printable
from agentic_django.models import AgentRun, AgentSession, AgentSessionItem, database

__all__ = [
    "Message",
    "Output",
    "ToolCall",
    "Turns",
    "agent_name",
    "asked",
    "markdown",
    "messages",
    "output",
    "readable",
    "tool_calls",
    "turns",
]

MAX_TURNS = 100
MAX_ITEMS = 500
MAX_SHOWN = 20_000
"""So many characters of a tool's arguments and output are shown."""


@dataclass(frozen=True, slots=True)
class ToolCall:
    """What an agent asked a tool, and what came back."""

    call_id: str
    name: str
    arguments: Any = None
    output: Any = None
    is_answered: bool = False
    seconds: float | None = None

    @property
    def summary(self) -> str:
        """The one argument that matters: the first short one, with its name if it is a number."""
        given = self.arguments if isinstance(self.arguments, dict) else {"": self.arguments}
        for name, value in given.items():
            if isinstance(value, bool) or value in (None, "", [], {}):
                continue
            if isinstance(value, int | float):
                return _cut(f"{name} {value}".replace("_", " ").strip())
            if isinstance(value, str):
                return _cut(readable(value))
        return ""

    @property
    def asked(self) -> str:
        """All arguments, to be read; a line for each where they are plain."""
        if self.arguments in (None, "", {}):
            return ""
        if not _is_record(self.arguments):
            return _shortened(readable(self.arguments))
        lines = [f"{name}: {_cell(value)}" for name, value in self.arguments.items()]
        return _shortened(printable("\n".join(lines)))

    @property
    def answered(self) -> str:
        """What came back, to be read."""
        return _shortened(readable(self.output))


@dataclass(frozen=True, slots=True)
class Message:
    """One piece of a conversation; ``kind`` is user, assistant, refusal, reasoning or tool."""

    kind: str
    text: str = ""
    call: ToolCall | None = None


@dataclass(frozen=True, slots=True)
class Output:
    """An answer as it is shown; ``kind`` is text, facts, table, list, json or none."""

    kind: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()


@dataclass(frozen=True, slots=True)
class Turns:
    """A conversation: what came before any run that is still known, then a turn for each run."""

    messages: Sequence[Message]
    runs: Sequence[AgentRun]
    is_cut: bool = False


# Conversations


def turns(session: AgentSession) -> Turns:
    """Return the last turns of a conversation, oldest first, in two statements."""
    kept = list(_runs_of(session)[: MAX_TURNS + 1])
    shown = kept[:MAX_TURNS][::-1]
    for run in shown:
        run.session = session
    is_cut = len(kept) > MAX_TURNS
    return Turns([] if is_cut else _before_runs(session), shown, is_cut)


def _runs_of(session: AgentSession) -> QuerySet[AgentRun]:
    runs = AgentRun.objects.using(database()).filter(session=session)
    return runs.with_place().with_steps().order_by("-position")


def _before_runs(session: AgentSession) -> list[Message]:
    items = AgentSessionItem.objects.using(database()).filter(session=session, run=None)
    latest = items.order_by("-sequence").values_list("payload", flat=True)[:MAX_ITEMS]
    return messages(list(latest)[::-1])


def asked(run: AgentRun) -> list[Message]:
    """Return what the person gave this run to do."""
    given = run.input_payload
    if isinstance(given, str):
        return [Message("user", printable(given))] if given.strip() else []
    if isinstance(given, list) and all(isinstance(item, dict) for item in given):
        return messages(given)
    return [Message("user", readable(given))]


def tool_calls(run: AgentRun) -> list[ToolCall]:
    """Return the run's tool calls so far, oldest first."""
    return [_call_of_step(step) for step in run.steps]


def _call_of_step(step: dict[str, Any]) -> ToolCall:
    return ToolCall(
        call_id=str(step.get("call_id", "")),
        name=printable(str(step.get("tool", ""))),
        arguments=step.get("arguments"),
        output=step.get("output"),
        is_answered="output" in step,
        seconds=step.get("duration_seconds"),
    )


def said(run: AgentRun) -> list[Output]:
    """Return what the agent said on the way to its answer, which is shown in its own place."""
    texts = run.texts
    if run.status == AgentRun.Status.COMPLETED and texts:
        is_answer = run.final_output in (texts[-1], _parsed(texts[-1]))
        texts = texts[:-1] if is_answer else texts
    return [Output("text", printable(text)) for text in texts if text.strip()]


def agent_name(run: AgentRun) -> str:
    """Return what to call the agent: its key in words."""
    words = re.sub(r"[-_.]+", " ", run.agent_key).strip()
    return words[:1].upper() + words[1:]


# Items


def messages(items: Iterable[Any]) -> list[Message]:
    """Return the messages of items in the SDK's input format, oldest first.

    A call and its output become one message. What the model was told by the host (system and
    developer messages) and items of kinds that a person cannot read are left out.
    """
    found: list[Message] = []
    calls: dict[str, int] = {}
    for item in items:
        if not isinstance(item, dict):
            continue
        if _is_output(item):
            _answer(found, calls, item)
        elif message := _message(item):
            if message.call:
                calls[message.call.call_id] = len(found)
            found.append(message)
    return found


def _is_output(item: dict[str, Any]) -> bool:
    return str(item.get("type", "")).endswith("_call_output")


def _answer(found: list[Message], calls: dict[str, int], item: dict[str, Any]) -> None:
    place = calls.get(str(item.get("call_id")))
    if place is None:
        return
    message = found[place]
    if message.call:
        call = replace(message.call, output=item.get("output"), is_answered=True)
        found[place] = replace(message, call=call)


def _message(item: dict[str, Any]) -> Message | None:
    kind = str(item.get("type") or "message")
    if kind == "message":
        return _spoken(str(item.get("role")), item.get("content"))
    if kind == "reasoning":
        text = _joined(item.get("summary"))
        return Message("reasoning", text) if text else None
    if kind.endswith("_call"):
        return Message("tool", call=_call_of_item(kind, item))
    return None


def _spoken(role: str, content: Any) -> Message | None:
    if role not in ("user", "assistant"):
        return None
    text = _joined(content)
    if role == "assistant" and _is_refusal(content):
        return Message("refusal", text)
    return Message(role, text) if text else None


def _is_refusal(content: Any) -> bool:
    parts = content if isinstance(content, list) else []
    return any(isinstance(part, dict) and part.get("type") == "refusal" for part in parts)


def _call_of_item(kind: str, item: dict[str, Any]) -> ToolCall:
    hosted = kind not in ("function_call", "custom_tool_call")
    given = item.get("arguments", item.get("input", item.get("action")))
    return ToolCall(
        call_id=str(item.get("call_id") or item.get("id") or ""),
        name=printable(str(item.get("name") or kind.removesuffix("_call"))),
        arguments=_parsed(given),
        output=item.get("output"),
        is_answered=hosted,
    )


def _parsed(given: Any) -> Any:
    if not isinstance(given, str):
        return given
    try:
        return json.loads(given)
    except (ValueError, RecursionError):
        return given


# Text


def readable(value: Any) -> str:
    """Return any JSON value as text for a person: text as it is, the rest indented."""
    if isinstance(value, str):
        structured = _parsed(value) if value[:1] in "{[" else value
        return printable(value) if isinstance(structured, str) else readable(structured)
    if isinstance(value, dict | list) and (text := _joined(value)):
        return text
    return _indented(value)


def _indented(value: Any) -> str:
    try:
        indent = 2 if _is_shallow(value) else None
        return printable(json.dumps(value, ensure_ascii=False, indent=indent))
    except RecursionError:
        return _("[Nested too deeply to be shown]")


def _is_shallow(value: Any, levels: int = 20) -> bool:
    """Whether a value has few levels: the indentation of many would outgrow the value itself."""
    children = value.values() if isinstance(value, dict) else value
    if isinstance(children, str) or not isinstance(children, Iterable):
        return True
    return levels > 0 and all(_is_shallow(child, levels - 1) for child in children)


def _joined(content: Any) -> str:
    """Return the text of content parts; pictures and files are named, not shown."""
    if isinstance(content, str):
        return printable(content)
    parts = content if isinstance(content, list) else [content]
    texts = [_part(part) for part in parts]
    return printable("\n\n".join(filter(None, texts))) if all(t is not None for t in texts) else ""


def _part(part: Any) -> str | None:
    """Return the text of one content part; None for what is not one."""
    match part:
        case {"type": "input_text" | "output_text" | "text" | "summary_text", "text": str(text)}:
            return text
        case {"type": "refusal", "refusal": str(text)}:
            return text
        case {"type": "input_image" | "image"}:
            return _("[Picture]")
        case {"type": "input_file" | "file"}:
            return _("[File] %(name)s") % {"name": part.get("filename") or ""}
        case {"type": "input_audio" | "audio"}:
            return _("[Recording]")
    return None


def _shortened(text: str) -> str:
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def _cut(text: str, length: int = 80) -> str:
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


# Answers


def output(run: AgentRun) -> Output:
    """Return a run's answer in the shape in which it reads best."""
    value = run.final_output
    match value:
        case None:
            return Output("none")
        case str():
            return Output("text", printable(value))
        case dict() if value and all(map(_is_scalar, value.values())):
            return Output("facts", rows=[(_label(k), _cell(v)) for k, v in value.items()])
        case list() if value and all(map(_is_record, value)):
            return _table(value)
        case list() if value and all(map(_is_scalar, value)):
            return Output("list", rows=[(_cell(v),) for v in value])
    return Output("json", _indented(value))


def _table(records: list[dict[str, Any]]) -> Output:
    names = list(dict.fromkeys(name for record in records for name in record))
    rows = [[_cell(record.get(name)) for name in names] for record in records]
    return Output("table", columns=[_label(name) for name in names], rows=rows)


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, dict | list)


def _is_record(value: Any) -> bool:
    return isinstance(value, dict) and bool(value) and all(map(_is_scalar, value.values()))


def _label(name: str) -> str:
    words = printable(name).replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def _cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    return printable(str(value))
