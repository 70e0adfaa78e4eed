"""Shows any JSON value as text, and the output of a run as text, facts, a table or a list."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from django.utils.translation import gettext as _
from django.utils.translation import ngettext

from agentic_django.models import AgentRun
from agentic_django.serialization import printable

__all__ = [
    "Output",
    "Section",
    "cell",
    "cut",
    "is_of_steps",
    "is_record",
    "joined_parts",
    "parsed",
    "readable",
    "run_output",
    "shortened",
]

MAX_SHOWN = 20_000
"""The number of characters shown of arguments, of an output or of a step's result."""

MAX_ROWS = 20
"""The number of entries shown of a step's result."""


@dataclass(frozen=True, slots=True)
class Output:
    """An output as it is shown. ``kind`` is text, facts, table, list, json, steps or none.

    ``more`` is the number of rows that are left out.
    """

    kind: str
    text: str = ""
    columns: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    more: int = 0
    sections: Sequence[Section] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """The result of one step of a pipeline, with a summary in one line."""

    label: str
    output: Output
    summary: str = ""


# Text


def parsed(value: Any) -> Any:
    """Return the value of a JSON string. Return any other value unchanged."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        return value


def readable(value: Any) -> str:
    """Return any JSON value as text for users: a string unchanged, others as indented JSON."""
    if isinstance(value, str):
        structured = parsed(value) if value[:1] in "{[" else value
        return printable(value) if isinstance(structured, str) else readable(structured)
    if isinstance(value, dict | list) and (text := joined_parts(value)):
        return text
    return _indented(value)


def _indented(value: Any) -> str:
    try:
        indent = 2 if _is_shallow(value) else None
        return printable(json.dumps(value, ensure_ascii=False, indent=indent))
    except RecursionError:
        return _("[Nested too deeply to be shown]")


def _is_shallow(value: Any, levels: int = 20) -> bool:
    """Whether a value has few levels. With many, the indentation would be larger than the value."""
    children = value.values() if isinstance(value, dict) else value
    if isinstance(children, str) or not isinstance(children, Iterable):
        return True
    return levels > 0 and all(_is_shallow(child, levels - 1) for child in children)


def joined_parts(content: Any) -> str:
    """Return the text of content parts. Images and files are replaced by names."""
    if isinstance(content, str):
        return printable(content)
    parts = content if isinstance(content, list) else [content]
    texts = [_part(part) for part in parts]
    return printable("\n\n".join(filter(None, texts))) if all(t is not None for t in texts) else ""


def _part(part: Any) -> str | None:
    """Return the text of one content part, or None for any other value."""
    match part:
        case {"type": "input_text" | "output_text" | "text" | "summary_text", "text": str(text)}:
            return text
        case {"type": "refusal", "refusal": str(text)}:
            return text
        case {"type": "input_image" | "image" | "generated_image"}:
            return _("[Image]")
        case {"type": "input_file" | "file"}:
            return _("[File] %(name)s") % {"name": part.get("filename") or ""}
        case {"type": "input_audio" | "audio"}:
            return _("[Audio]")
    return None


def shortened(text: str) -> str:
    """Return at most ``MAX_SHOWN`` characters of a text."""
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}…"


def cut(text: str, length: int = 80) -> str:
    """Return a text as one line, cut to a length."""
    line = " ".join(text.split())
    return line if len(line) <= length else f"{line[: length - 1]}…"


# Outputs


def run_output(run: AgentRun) -> Output:
    """Return the output of a run in its most readable form.

    If the output is the results of steps, the last result is the answer. Each of the others is one
    line that can be opened.
    """
    if not is_of_steps(run) or all(map(_is_short, run.final_output.values())):
        return _shaped(run.final_output)
    found = {name: value for name, value in run.final_output.items() if value not in (None, "")}
    sections = [_section(name, value) for name, value in found.items()]
    return Output("steps", sections=sections) if sections else Output("none")


def _shaped(value: Any) -> Output:
    match value:
        case None:
            return Output("none")
        case str():
            return Output("text", printable(value))
        case dict() if value and all(map(_is_scalar, value.values())):
            return Output("facts", rows=[(_label(k), cell(v)) for k, v in value.items()])
        case list() if value and all(map(is_record, value)):
            names = list(dict.fromkeys(name for record in value for name in record))
            rows = [[cell(record.get(name)) for name in names] for record in value]
            return Output("table", columns=[_label(name) for name in names], rows=rows)
        case list() if value and all(map(_is_scalar, value)):
            return Output("list", rows=[(cell(v),) for v in value])
    return Output("json", _indented(value))


def is_of_steps(run: AgentRun) -> bool:
    """Whether the output of a run is a dict of the results of its steps, by their names."""
    value = run.final_output
    names = {stage["step_name"] for stage in run.stages} if isinstance(value, dict) else set()
    return bool(value) and bool(names) and names >= set(value)


def _section(name: str, value: Any) -> Section:
    """Return the result of a step, shortened, with a summary. Markup is shown as its source."""
    is_markup = isinstance(value, str) and value.lstrip().startswith("<")
    made = Output("json", printable(value)) if is_markup else _shaped(value)
    more = max(len(made.rows) - MAX_ROWS, 0)
    made = replace(made, text=shortened(made.text), rows=made.rows[:MAX_ROWS], more=more)
    match value:
        case dict():
            plain = {key: each for key, each in value.items() if _is_short(each)}
            summary = cut(", ".join(f"{_label(k)}: {cell(v)}" for k, v in plain.items()))
        case list():
            summary = ngettext("%d entry", "%d entries", len(value)) % len(value)
        case _:
            summary = cut(cell(value)[:MAX_SHOWN])
    return Section(_label(name), made, summary)


def _is_scalar(value: Any) -> bool:
    return not isinstance(value, dict | list)


def _is_short(value: Any) -> bool:
    return _is_scalar(value) and len(str(value)) <= 200


def is_record(value: Any) -> bool:
    """Whether a value is a dict of simple values."""
    return isinstance(value, dict) and bool(value) and all(map(_is_scalar, value.values()))


def _label(name: str) -> str:
    words = printable(name).replace("_", " ").strip()
    return words[:1].upper() + words[1:]


def cell(value: Any) -> str:
    """Return a simple value as the text of a table cell."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return _("yes") if value else _("no")
    return printable(str(value))
