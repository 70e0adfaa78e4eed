"""Renders Markdown as HTML that is safe for any input.

The output contains only allowed elements.
"""

from __future__ import annotations

import sys
from collections.abc import MutableMapping, Sequence
from typing import Any, cast

import nh3
from django.utils.html import escape
from django.utils.safestring import SafeString, mark_safe
from django.utils.translation import get_language
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

from agentic_django.presentation.highlighting import highlighted
from agentic_django.presentation.markdown_syntax import add_syntax
from agentic_django.presentation.rendered_cache import RenderedCache
from agentic_django.serialization import printable

__all__ = ["MAX_LENGTH", "PARSER", "markdown", "plain", "render"]

MAX_LENGTH = 200_000
"""Longer text is shown as plain text, because rendering takes about 2 ms per 1,000 characters."""

MAX_HIGHLIGHTED = 20_000
"""The number of characters of code that are coloured in one text."""

_rendered: RenderedCache[tuple[str, str], SafeString] = RenderedCache(16_000_000, sys.getsizeof)


def markdown(text: str) -> SafeString:
    """Return Markdown as HTML with allowed elements only. The text may be untrusted."""
    text = printable(str(text))
    return _rendered.get((text, get_language() or ""), lambda: render(text))


def render(text: str, *, highlights: bool = True) -> SafeString:
    """Return Markdown as HTML, without the cache. ``highlights`` says whether code is coloured."""
    if len(text) > MAX_LENGTH:
        return plain(text)
    clean = nh3.clean(
        PARSER.render(text, {"highlighted": 0 if highlights else MAX_HIGHLIGHTED}),
        tags=_BLOCKS | _INLINE | _TABLES,
        attributes=_ATTRIBUTES,
        url_schemes={"http", "https", "mailto"},
        link_rel="noopener noreferrer nofollow",
    )
    return mark_safe(clean)  # noqa: S308 - from the allow-list


def plain(text: str) -> SafeString:
    """Return text as HTML without any formatting."""
    return mark_safe(f"<pre>{escape(text)}</pre>")  # noqa: S308 - escaped


_HEADINGS = {"h3", "h4", "h5", "h6"}
_BLOCKS = _HEADINGS | {"blockquote", "div", "hr", "li", "ol", "p", "pre", "ul"}
_INLINE = {"a", "br", "code", "em", "input", "kbd", "s", "span", "strong", "sub", "sup"}
_TABLES = {"table", "tbody", "td", "th", "thead", "tr"}
_ATTRIBUTES = {
    **{tag: {"class"} for tag in _HEADINGS},
    "a": {"href", "target", "title"},
    "code": {"class"},
    "div": {"class", "tabindex"},
    "input": {"aria-label", "checked", "disabled", "type"},
    "li": {"class"},
    "ol": {"start"},
    "pre": {"class", "tabindex"},
    "span": {"class"},
    "td": {"align"},
    "th": {"align"},
}


def _fence(tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    """Return a block of code, coloured as far as the text's share of colour lasts."""
    code, language = tokens[at].content, tokens[at].info.strip().partition(" ")[0]
    length = env.get("highlighted", 0) + len(code)
    if length > MAX_HIGHLIGHTED:
        return _code(escape(code))
    env["highlighted"] = length
    return _code(highlighted(code, language))


def _code(html: str) -> str:
    return f'<pre class="agentic-code" tabindex="0"><code>{html}</code></pre>'


def _image(tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    """Return a link instead of an image, because loading it would reveal what a user reads."""
    source = str(tokens[at].attrs.get("src", ""))
    text = escape(tokens[at].content or source)
    if tokens[at].meta.get("is_in_link") or not source.startswith(("http://", "https://")):
        return str(text)
    return f'<a href="{escape(source)}" target="_blank">{text}</a>'


def _mark_images(state: Any) -> None:
    """Mark the images that are part of the text of a link."""
    for token in state.tokens:
        depth = 0
        for child in token.children or ():
            depth += child.nesting if child.type.startswith("link_") else 0
            if child.type == "image":
                child.meta["is_in_link"] = depth > 0


def _link(tokens: Sequence[Token], at: int, options: Any, env: Any) -> str:
    """Open a link in a new tab, because the page may hold a message that is not sent yet."""
    tokens[at].attrs["target"] = "_blank"
    return f"<a{RendererHTML.renderAttrs(tokens[at])}>"


def _lower_headings(state: Any) -> None:
    """Lower headings below the h2 of the page, without skipping a level.

    The class says which level the author gave.
    """
    level = 2
    for token in state.tokens:
        if token.type == "heading_open":
            token.attrs["class"] = f"agentic-{token.tag}"
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


PARSER = MarkdownIt("commonmark", {"html": False})
PARSER.enable(["table", "strikethrough"])
add_syntax(PARSER)
PARSER.core.ruler.push("lower_headings", _lower_headings)
PARSER.core.ruler.push("align", _align)
PARSER.core.ruler.push("mark_images", _mark_images)
_RULES: MutableMapping[str, Any] = cast(RendererHTML, PARSER.renderer).rules
_RULES["image"] = _image
_RULES["link_open"] = _link
_RULES["fence"] = _fence
_RULES["code_block"] = lambda tokens, at, options, env: _code(escape(tokens[at].content))
_RULES["table_open"] = lambda *_: '<div class="agentic-scroll" tabindex="0"><table>'
_RULES["table_close"] = lambda *_: "</table></div>"
