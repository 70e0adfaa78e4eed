"""Renders Markdown as HTML that is safe for any input.

The output contains only allowed elements. A growing text is rendered in blocks, so that only the
last block is rendered again.
"""

from __future__ import annotations

import re
import threading
from collections import OrderedDict
from collections.abc import MutableMapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import nh3
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

from agentic_django.serialization import printable

__all__ = ["Block", "blocks", "growing", "markdown"]

MAX_LENGTH = 200_000
"""Longer text is shown as plain text, because rendering takes about 2 ms per 1,000 characters."""


def markdown(text: str) -> SafeString:
    """Return Markdown as HTML with allowed elements only. The text may be untrusted."""
    return _rendered(printable(str(text)))


@dataclass(frozen=True, slots=True)
class Block:
    """A part of a text that renders separately: a paragraph, a list or a table."""

    source: str
    html: SafeString


@lru_cache(maxsize=128)
def blocks(text: str) -> list[Block]:
    """Return the blocks of a growing text. Blocks before the last are not rendered again."""
    text = _NEWLINE.sub("\n", printable(text))
    if len(text) > MAX_LENGTH:
        return [Block(text, _rendered(text))]
    known = _block_cache.get(text)
    rest = text[sum(len(block.source) for block in known) :]
    found = [*known, *(Block(part, _render(part)) for part in _parts(rest))]
    _block_cache.put(text, found)
    return found


def growing(text: str) -> SafeString:
    """Return a growing text as HTML."""
    return mark_safe("".join(block.html for block in blocks(str(text))))  # noqa: S308 - from blocks


_NEWLINE = re.compile(r"\r\n?")


class _BlockCache:
    """The blocks of texts that grew recently, by the first 64 characters of the text."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: OrderedDict[str, tuple[str, list[Block]]] = OrderedDict()

    def get(self, text: str) -> list[Block]:
        """Return the blocks that are final in a longer text: all but the last."""
        with self._lock:
            before, found = self._entries.get(text[:64], ("", []))
        if not before or not text.startswith(before):
            return []
        return found[:-1]

    def put(self, text: str, found: list[Block]) -> None:
        """Store the blocks of a text."""
        with self._lock:
            self._entries[text[:64]] = (text, found)
            self._entries.move_to_end(text[:64])
            while len(self._entries) > 512:
                self._entries.popitem(last=False)


_block_cache = _BlockCache()


def _parts(text: str) -> list[str]:
    """Split a text where its blocks begin."""
    lines = [f"{line}\n" for line in text.split("\n")]
    lines[-1] = lines[-1][:-1]
    tops = (token for token in _MARKDOWN.parse(text) if token.level == 0 and token.map)
    starts = sorted({token.map[0] for token in tops if token.map}) or [0]
    starts[0] = 0
    ends = [*starts[1:], len(lines)]
    parts = ["".join(lines[a:b]) for a, b in zip(starts, ends, strict=True)]
    return [part for part in parts if part]


@lru_cache(maxsize=512)
def _rendered(text: str) -> SafeString:
    return _render(text)


def _render(text: str) -> SafeString:
    if len(text) > MAX_LENGTH:
        return mark_safe(f"<pre>{escape(text)}</pre>")  # noqa: S308 - escaped
    clean = nh3.clean(
        _MARKDOWN.render(text),
        tags=_BLOCKS | _INLINE | _TABLES,
        attributes=_ATTRIBUTES,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
    )
    return mark_safe(clean)  # noqa: S308 - from the allow-list


_BLOCKS = {"blockquote", "div", "h3", "h4", "h5", "h6", "hr", "li", "ol", "p", "pre", "ul"}
_INLINE = {"a", "br", "code", "em", "s", "span", "strong"}
_TABLES = {"table", "tbody", "td", "th", "thead", "tr"}
_ATTRIBUTES = {
    "a": {"href", "title"},
    "code": {"class"},
    "div": {"class", "tabindex"},
    "ol": {"start"},
    "pre": {"class", "tabindex"},
    "span": {"class"},
    "td": {"align"},
    "th": {"align"},
}
_FORMATTER: HtmlFormatter[str] = HtmlFormatter(nowrap=True, classprefix="agentic-hl-")


def _code(code: str, language: str, attributes: str) -> str:
    try:
        body = highlight(code, get_lexer_by_name(language), _FORMATTER) if language else ""
    except ClassNotFound:
        body = ""
    return f'<pre class="agentic-code" tabindex="0"><code>{body or escape(code)}</code></pre>'


def _image(tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    """Return a link instead of an image, because loading it would reveal what a user reads."""
    source = str(tokens[at].attrs.get("src", ""))
    text = escape(tokens[at].content or source)
    depth = sum(token.nesting for token in tokens[:at] if token.type.startswith("link_"))
    if depth or not source.startswith(("http://", "https://")):
        return str(text)
    return f'<a href="{escape(source)}">{text}</a>'


def _lower_headings(state: Any) -> None:
    """Lower headings below the h2 of the page, without skipping a level."""
    level = 2
    for token in state.tokens:
        if token.type == "heading_open":
            level = min(int(token.tag[1]) + 2, level + 1, 6)
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{level}"


def _align(state: Any) -> None:
    """Align cells with an attribute, because a content security policy may forbid inline styles."""
    for token in state.tokens:
        if token.type in ("th_open", "td_open"):
            style = str(token.attrs.pop("style", ""))
            if style:
                token.attrs["align"] = style.removeprefix("text-align:")


_MARKDOWN = MarkdownIt("commonmark", {"html": False, "highlight": _code})
_MARKDOWN.enable(["table", "strikethrough"])
_MARKDOWN.core.ruler.push("lower_headings", _lower_headings)
_MARKDOWN.core.ruler.push("align", _align)
_RULES: MutableMapping[str, Any] = cast(RendererHTML, _MARKDOWN.renderer).rules
_RULES["image"] = _image
_RULES["code_block"] = lambda tokens, at, options, env: _code(tokens[at].content, "", "")
_RULES["table_open"] = lambda *_: '<div class="agentic-scroll" tabindex="0"><table>'
_RULES["table_close"] = lambda *_: "</table></div>"
