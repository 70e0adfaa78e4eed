"""Reads the project's Markdown: fenced blocks, links, headings."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Block", "anchors", "blocks", "links"]


@dataclass(frozen=True)
class Block:
    """A fenced block: what stands behind the fence, the text, and the line it begins at."""

    info: str
    text: str
    line: int

    @property
    def language(self) -> str:
        """The first word behind the fence."""
        return self.info.partition(" ")[0]


_FENCE = re.compile(r"^```([^\n]*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path, text: str | None = None) -> list[Block]:
    """Return the fenced blocks of a page (or of a part of it) in order."""
    text = page.read_text() if text is None else text
    return [
        Block(found[1].strip(), found[2], text.count("\n", 0, found.start()) + 1)
        for found in _FENCE.finditer(text)
    ]


def _prose(page: Path) -> str:
    return _FENCE.sub("", page.read_text())


def links(page: Path) -> list[str]:
    """Return the targets of links and pictures."""
    prose = _prose(page)
    in_html = re.findall(r'(?:src|srcset|href)="([^"]+)"', re.sub(r"`[^`]*`", "", prose))
    return [*re.findall(r"\]\(([^)\s]+)\)", prose), *in_html]


def anchors(page: Path) -> set[str]:
    """Return the names by which GitHub links to a page's headings."""
    headings = re.findall(r"^#+ (.+)$", _prose(page), re.MULTILINE)
    words = (re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower() for heading in headings)
    return {re.sub(r"[^\w\- ]", "", heading).replace(" ", "-") for heading in words}
