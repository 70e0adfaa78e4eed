"""Rules for syntax that models write and CommonMark does not have.

Mathematics stays text, ``<br>`` breaks a line, addresses become links, and task lists and footnotes
are shown as such. Each rule reads a bounded number of characters before it decides, so that parsing
takes time that grows with the length of the text only.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import MutableMapping, Sequence
from typing import Any, cast

from django.utils.html import escape
from django.utils.translation import gettext as _
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.ruler import RuleOptionsType
from markdown_it.rules_block import StateBlock
from markdown_it.rules_core import StateCore
from markdown_it.rules_inline import StateInline
from markdown_it.token import Token

__all__ = ["add_syntax"]

_MAX_FORMULA = 2_000
_INTERRUPTIBLE: RuleOptionsType = {"alt": ["paragraph", "reference", "blockquote", "list"]}


def add_syntax(parser: MarkdownIt) -> None:
    """Add the rules to a parser, and the ways to render what they find."""
    parser.block.ruler.before("fence", "formula", _formula_block, _INTERRUPTIBLE)
    parser.block.ruler.before("reference", "footnote", _footnote, _INTERRUPTIBLE)
    inline = parser.inline.ruler
    inline.before("escape", "formula", _formula)
    inline.before("escape", "address", _address)
    inline.before("link", "footnote_reference", _footnote_reference)
    inline.before("autolink", "plain_tag", _plain_tag)
    parser.core.ruler.before("block", "footnote_labels", _footnote_labels)
    parser.core.ruler.push("tasks", _tasks)
    rules: MutableMapping[str, Any] = cast(RendererHTML, parser.renderer).rules
    rules["formula"] = _render_formula
    rules["formula_block"] = _render_formula
    rules["footnote_label"] = lambda tokens, at, *_: f"<sup>{escape(tokens[at].content)}</sup>"
    rules["task_box"] = _render_task_box


# Mathematics

_CLOSERS = {"\\(": "\\)", "\\[": "\\]", "$$": "$$"}
_DOLLARS = re.compile(r"\$(?![\s$])(?:[^$\n\\]|\\[^\n]){1,500}+\$(?!\d)")


def _formula(state: StateInline, silent: bool) -> bool:
    r"""Keep ``\(a^2\)``, ``\[a^2\]``, ``$$a^2$$`` and ``$a^2$`` as they are."""
    start, opener = state.pos, state.src[state.pos : state.pos + 2]
    if closer := _CLOSERS.get(opener):
        end = state.src.find(closer, start + 2, min(state.posMax, start + _MAX_FORMULA)) + 2
        is_formula = end > start + 4 or (end > start + 2 and closer != "$$")
    else:
        match = _DOLLARS.match(state.src, start, state.posMax)
        end = match.end() if match else 0
        is_formula = match is not None and not match[0][-2].isspace()
    if not is_formula:
        return False
    if not silent:
        state.push("formula", "", 0).content = state.src[start:end]
    state.pos = end
    return True


def _formula_block(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    """Keep a formula of several lines as it is, whatever its lines begin with."""
    first = state.src[state.bMarks[start] + state.tShift[start] : state.eMarks[start]]
    closer = _CLOSERS.get(first[:2])
    if closer is None or closer in first[2:] or state.is_code_block(start):
        return False
    begin = state.eMarks[start]
    found = state.src.find(closer, begin, begin + _MAX_FORMULA)
    line = bisect_right(state.bMarks, found) - 1
    if found < 0 or line >= end or state.src[found + 2 : state.eMarks[line]].strip(" .,;"):
        return False
    lines = range(start + 1, line + 1)
    if any(state.sCount[each] < state.blkIndent and not state.isEmpty(each) for each in lines):
        return False
    if not silent:
        token = state.push("formula_block", "", 0)
        token.map, token.block = [start, line + 1], True
        token.content = state.getLines(start, line + 1, state.blkIndent, False)
        state.line = line + 1
    return True


def _render_formula(tokens: Sequence[Token], at: int, *_: Any) -> str:
    tag = "div" if tokens[at].block else "span"
    return f'<{tag} class="agentic-math">{escape(tokens[at].content)}</{tag}>'


# Addresses, and the tags that models use

_ADDRESS = re.compile(r"""://[^\s<>"`|\\\u3000-\u303f\uff01-\uff0f\uff1a-\uff1f]{1,2000}+""")
_SCHEME = re.compile(r"(?<![a-z0-9.+-])https?\Z", re.IGNORECASE)
_PLAIN_TAG = re.compile(r"<(?:(br)[ ]{0,3}/?|/?(?:sub|sup|kbd))>", re.IGNORECASE)


def _address(state: StateInline, silent: bool) -> bool:
    """Turn a bare address into a link. Punctuation after it belongs to the sentence."""
    scheme = _SCHEME.search(state.pending[-6:])
    if state.src[state.pos] != ":" or state.linkLevel > 0 or scheme is None:
        return False
    match = _ADDRESS.match(state.src, state.pos, state.posMax)
    rest = _without_punctuation(match[0]) if match else ""
    if len(rest) < 4:
        return False
    address = state.md.normalizeLink(scheme[0] + rest)
    if not state.md.validateLink(address):
        return False
    if not silent:
        state.pending = state.pending[: -len(scheme[0])]
        state.push("link_open", "a", 1).attrs = {"href": address}
        state.push("text", "", 0).content = scheme[0] + rest
        state.push("link_close", "a", -1)
    state.pos += len(rest)
    return True


def _without_punctuation(text: str) -> str:
    """Return an address without what ends a sentence. A bracket stays if it was opened before."""
    unopened = text.count(")") - text.count("(")
    while text:
        if text[-1] == ")" and unopened > 0:
            unopened -= 1
        elif text[-1] not in ".,;:!?'*_~]}":
            break
        text = text[:-1]
    return text


def _plain_tag(state: StateInline, silent: bool) -> bool:
    """Accept ``<br>``, ``<sub>``, ``<sup>`` and ``<kbd>`` without attributes."""
    match = _PLAIN_TAG.match(state.src, state.pos, state.posMax)
    if match is None:
        return False
    if not silent:
        if match[1]:
            state.push("hardbreak", "br", 0)
        else:
            state.push("html_inline", "", 0).content = match[0].lower()
    state.pos = match.end()
    return True


# Footnotes: a reference is shown as the label of its note, without a link, since ids would clash

_NOTE = re.compile(r" {0,3}\[\^([^\]\s]{1,40})\]:[ \t]*")
_NOTES = re.compile(rf"^{_NOTE.pattern}", re.MULTILINE)
_REFERENCE = re.compile(r"\[\^([^\]\s]{1,40})\]")


def _footnote_labels(state: StateCore) -> None:
    state.env["footnotes"] = set(_NOTES.findall(state.src))


def _footnote_reference(state: StateInline, silent: bool) -> bool:
    match = _REFERENCE.match(state.src, state.pos, state.posMax)
    if match is None or not (match[1].isdigit() or match[1] in state.env.get("footnotes", ())):
        return False
    if not silent:
        state.push("footnote_label", "", 0).content = match[1]
    state.pos = match.end()
    return True


def _footnote(state: StateBlock, start: int, end: int, silent: bool) -> bool:
    first = state.getLines(start, start + 1, state.blkIndent, False)
    match = _NOTE.match(first)
    if match is None or state.is_code_block(start):
        return False
    if silent:
        return True
    line = start + 1
    while line < end and not state.isEmpty(line) and state.sCount[line] >= state.blkIndent:
        if _NOTE.match(state.getLines(line, line + 1, state.blkIndent, False)):
            break
        line += 1
    text = state.getLines(start, line, state.blkIndent, False)[match.end() :]
    opened = state.push("footnote_open", "div", 1)
    opened.attrs, opened.map, opened.block = {"class": "agentic-note"}, [start, line], True
    inline = state.push("inline", "", 0)
    inline.content, inline.map = f"[^{match[1]}] {text.strip()}", [start, line]
    inline.children = []
    state.push("footnote_close", "div", -1).block = True
    state.line = line
    return True


# Task lists

_TASK = re.compile(r"\[([ xX])\](?=\s)")


def _tasks(state: StateCore) -> None:
    """Show ``[ ]`` and ``[x]`` at the start of a list item as a box."""
    for at, token in enumerate(state.tokens[2:], 2):
        children = token.children or []
        is_first = state.tokens[at - 2].type == "list_item_open" and token.type == "inline"
        if is_first and children and (match := _TASK.match(children[0].content)):
            children[0].content = children[0].content[3:]
            children.insert(0, Token("task_box", "", 0, content=match[1].strip()))
            state.tokens[at - 2].attrs["class"] = "agentic-task"


def _render_task_box(tokens: Sequence[Token], at: int, *_arguments: Any) -> str:
    done = bool(tokens[at].content)
    label = escape(_("done") if done else _("not done"))
    checked = " checked" if done else ""
    return f'<input type="checkbox" disabled{checked} aria-label="{label}">'
