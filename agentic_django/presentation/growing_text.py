"""Renders a text while it grows, at a cost that does not depend on its length.

The text is read in steps of at most ``STEP`` characters. A step renders the blocks that it
completes (a paragraph, a list, a table), and ends where the next block begins. A block that is
longer than a step is shown in several parts: a table repeats its header, and code continues in the
next box. Each step depends on its own characters only, so a cache keeps the complete ones, and each
growth renders the last blocks only. The finished message is rendered as a whole.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import get_language
from markdown_it.token import Token

from agentic_django.presentation.markdown import MAX_LENGTH, PARSER, plain, render
from agentic_django.presentation.rendered_cache import RenderedCache
from agentic_django.serialization import printable

__all__ = ["STEP", "Block", "blocks", "growing"]

STEP = 4_000
"""The number of characters that one growth may render again."""


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a text that renders on its own: a paragraph, a list, a table."""

    source: str
    html: SafeString


@dataclass(frozen=True, slots=True)
class _Step:
    """The blocks of a step, its number of characters, and the start of the block that it cuts.

    The start is the first line of a fence, or the header of a table; the next part needs it.
    """

    blocks: Sequence[Block]
    length: int
    opening: str = ""


def blocks(text: str) -> list[Block]:
    """Return the blocks of a growing text. Blocks before the last are not rendered again."""
    text = _NEWLINE.sub("\n", printable(text))
    found: list[Block] = []
    at, opening, language = 0, "", get_language() or ""
    while at < len(text):
        part, is_last = text[at : at + STEP], at + STEP >= len(text)
        if at >= MAX_LENGTH:
            step = _Step([Block(part, plain(part))], len(part))
        else:
            key = part, opening, language, is_last
            step = _steps.get(key, partial(_step, part, opening, is_last=is_last))
        found += step.blocks
        at, opening = at + step.length, step.opening
    return found


def growing(text: str) -> SafeString:
    """Return a growing text as HTML."""
    return mark_safe("".join(block.html for block in blocks(str(text))))  # noqa: S308 - from blocks


_NEWLINE = re.compile(r"\r\n?")


def _step(text: str, opening: str, *, is_last: bool) -> _Step:
    """Return the step at the start of a text, which begins with a block or continues one."""
    if opening:
        return _continued(text, opening, is_last=is_last)
    if is_last:
        *final, growing_block = _parts(text, _starts(_tokens(text)))
        return _Step([*map(_block, final), _block(growing_block, highlights=False)], len(text))
    text = _whole_lines(text)
    tokens = _tokens(text)
    parts = _parts(text, _starts(tokens))
    if len(parts) > 1:
        return _Step([_block(part) for part in parts[:-1]], len(text) - len(parts[-1]))
    parts = _parts(text, _inner_starts(tokens))
    if len(parts) > 1:
        text = text[: -len(parts[-1])]
        return _Step([_block(text, highlights=False)], len(text))
    return _Step([_block(text, highlights=False)], len(text), _opening(text, tokens))


def _continued(text: str, opening: str, *, is_last: bool) -> _Step:
    """Return the next part of a block that an earlier step has cut."""
    if end := _end_of(opening).search(text):
        text, opening_after = text[: end.end()], ""
    else:
        text, opening_after = text if is_last else _whole_lines(text), opening
    block = Block(text, _html(opening + text, highlights=False))
    return _Step([block], len(text), opening_after)


def _tokens(text: str) -> list[Token]:
    """Return the tokens of blocks, without those of their text."""
    tokens: list[Token] = []
    PARSER.block.parse(text, PARSER, {}, tokens)
    return tokens


def _starts(tokens: Iterable[Token]) -> set[int]:
    """Return the numbers of the lines at which blocks begin."""
    return {token.map[0] for token in tokens if token.level == 0 and token.map}


def _inner_starts(tokens: Sequence[Token]) -> set[int]:
    """Return the numbers of the lines at which a list or a quotation can be cut."""
    if not tokens or tokens[0].type == "table_open":
        return set()
    return {token.map[0] for token in tokens if token.level == 1 and token.map and token.nesting}


def _parts(text: str, starts: set[int]) -> list[str]:
    """Split a text before lines."""
    lines = [f"{line}\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    numbers = [0, *sorted(starts - {0}), len(lines)]
    parts = ["".join(lines[a:b]) for a, b in pairwise(numbers)]
    return [part for part in parts if part] or [text]


def _whole_lines(text: str) -> str:
    """Return a text up to the end of its last whole line; else up to its last space."""
    end = text.rfind("\n") + 1 or text.rfind(" ") + 1
    return text[: end or len(text)]


def _opening(text: str, tokens: Sequence[Token]) -> str:
    """Return the line that opens the fence, or the header of the table, in which a text ends."""
    lines = text.split("\n")
    if tokens and tokens[0].type == "table_open":
        return "".join(f"{line}\n" for line in lines[:2])
    last = next((token for token in reversed(tokens) if token.map), None)
    if last is None or last.map is None or last.type != "fence":
        return ""
    start, end = last.map
    is_closed = end - start > 1 and _end_of(last.markup).match(lines[end - 1])
    return "" if is_closed else f"{last.markup}{last.info}\n"


def _end_of(opening: str) -> re.Pattern[str]:
    """Return the pattern of the end of a block that an opening began."""
    if opening[:3] in ("```", "~~~"):
        marker = opening[: len(opening) - len(opening.lstrip(opening[0]))]
        return re.compile(rf"^[ \t]*{marker}[`~]*[ \t]*(?:\n|\Z)", re.MULTILINE)
    return re.compile(r"^[ \t]*\n", re.MULTILINE)


def _block(source: str, *, highlights: bool = True) -> Block:
    return Block(source, _html(source, highlights=highlights))


def _html(source: str, *, highlights: bool) -> SafeString:
    key = source, get_language() or "", highlights
    return _parts_html.get(key, partial(render, source, highlights=highlights))


def _size(step: _Step) -> int:
    return sum(sys.getsizeof(block.source) + sys.getsizeof(block.html) for block in step.blocks)


_steps: RenderedCache[tuple[str, str, str, bool], _Step] = RenderedCache(16_000_000, _size)
_parts_html: RenderedCache[tuple[str, str, bool], SafeString] = RenderedCache(
    8_000_000, sys.getsizeof
)
