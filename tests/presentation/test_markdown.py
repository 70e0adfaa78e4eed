"""Markdown as models write it: its syntax, and its cost for any text."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Callable

import pytest

from agentic_django.presentation import growing_text
from agentic_django.presentation import markdown as rendering
from agentic_django.presentation.growing_text import STEP, blocks, growing
from agentic_django.presentation.highlighting import highlighted
from agentic_django.presentation.markdown import MAX_HIGHLIGHTED, markdown, render
from agentic_django.presentation.rendered_cache import RenderedCache


def seconds(act: Callable[[], object]) -> float:
    """Return the CPU time of an action, the least of three."""
    found = []
    for _ in range(3):
        began = time.process_time()
        act()
        found.append(time.process_time() - began)
    return min(found)


# Syntax


@pytest.mark.parametrize("tag", ["<br>", "<br/>", "<br />", "<BR>"])
def test_break_is_a_line_break_in_cells_and_paragraphs(tag: str) -> None:
    assert "x<br>\ny</td>" in markdown(f"| a |\n|---|\n| x{tag}y |")
    assert "<p>x<br>\ny</p>" in markdown(f"x{tag}y")


def test_break_within_code_is_text() -> None:
    assert "a&lt;br&gt;b" in markdown("`a<br>b`")


def test_superscripts_and_subscripts_are_shown_and_closed() -> None:
    assert "H<sub>2</sub>O" in markdown("H<sub>2</sub>O")
    assert "<p>a<sup>b</sup></p>" in markdown("a<sup>b\n\nc")
    assert "<sub " not in markdown('<sub onclick="a()">x</sub>')


@pytest.mark.parametrize(
    "formula",
    [
        r"\(a^2\)",
        r"\(a_1 * b_1 * c\)",
        r"\[\frac{a}{b}\]",
        r"$$\{x\} * y * z$$",
        r"$\alpha_1 + \{b\}$",
        "\\[\na\n= b\n- c\\\\\n\\]",
        "$$\n# a\n\n> b\n$$",
        "$$\na &< b\n$$",
    ],
)
def test_mathematics_keeps_each_of_its_characters(formula: str) -> None:
    html = markdown(f"Before\n\n{formula}\n\nAfter")
    shown = formula.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    assert f">{shown}<" in html
    assert "<em>" not in html


def test_mathematics_in_lists_and_tables_is_kept() -> None:
    assert r">\(a_1\)<" in markdown("| a |\n|---|\n| \\(a_1\\) |")
    assert "\\[\na\n= b\n\\]" in markdown("- One:\n\n  \\[\n  a\n  = b\n  \\]\n- Two")


def test_prices_are_not_mathematics() -> None:
    assert markdown("from $5 to *$6*") == "<p>from $5 to <em>$6</em></p>\n"


@pytest.mark.parametrize(
    ("text", "address", "rest"),
    [
        ("See https://a.example/b_c_d.", "https://a.example/b_c_d", "."),
        ("(https://a.example/b)", "https://a.example/b", ")"),
        ("https://a.example/b_(c) x", "https://a.example/b_(c)", " x"),
        ("**https://a.example**", "https://a.example", "</strong>"),
        ("参见https://a.example/b。", "https://a.example/b", "。"),
    ],
)
def test_bare_address_becomes_a_link(text: str, address: str, rest: str) -> None:
    assert f">{address}</a>{rest}" in markdown(text)


@pytest.mark.parametrize(
    "text", ["https://a.example", "<https://a.example>", "[a](https://a.example)"]
)
def test_link_opens_in_a_new_tab_without_access_to_the_page(text: str) -> None:
    html = markdown(text)
    assert 'href="https://a.example"' in html
    assert 'target="_blank"' in html
    assert 'rel="noopener noreferrer nofollow"' in html


def test_address_within_code_or_a_link_stays_as_it_is() -> None:
    assert "<a" not in markdown("`https://a.example`")
    assert markdown("[https://a.example](https://b.example)").count("<a ") == 1


def test_task_list_shows_a_box_for_each_task() -> None:
    html = markdown("- [ ] open\n- [x] **done**\n- none")
    assert html.count('type="checkbox"') == 2
    assert html.count("checked") == 1
    assert "[ ]" not in html
    assert "[x]" not in html


def test_footnotes_have_their_labels_at_text_and_note() -> None:
    html = markdown("Text[^1] and[^why].\n\n[^1]: One.\n[^why]: See https://a.example.")
    assert "Text<sup>1</sup> and<sup>why</sup>." in html
    assert '<div class="agentic-note"><sup>1</sup> One.</div>' in html
    assert '<sup>why</sup> See <a href="https://a.example"' in html


def test_character_class_is_not_a_footnote() -> None:
    assert "[^a-z]" in markdown("Match [^a-z] here.")


def test_headings_keep_the_levels_of_their_author() -> None:
    html = markdown("# One\n## Two\n### Three")
    assert re.findall(r'<(h\d) class="agentic-(h\d)"', html) == [
        ("h3", "h1"),
        ("h4", "h2"),
        ("h5", "h3"),
    ]
    assert 'class="agentic-h2"' in markdown("## Two")


# Code


@pytest.mark.parametrize(
    ("language", "code", "span"),
    [
        ("python", 'x = """a\n\'b"""', 's">&quot;&quot;&quot;a\n&#x27;b&quot;&quot;&quot;<'),
        ("js", "const a = 1 // if", 'c">// if<'),
        ("sql", "SELECT 1", 'k">SELECT<'),
        ("rust", "fn f<'a>(x: &'a str)", 'k">fn<'),
        ("html", "<p id='a'>if</p>", 'nt">&lt;p<'),
        ("diff", "+a\n-b", 'gd">-b<'),
        ("JSON", '{"a": true}', 'k">true<'),
    ],
)
def test_code_is_coloured(language: str, code: str, span: str) -> None:
    html = highlighted(code, language)
    assert f"agentic-hl-{span}" in html
    assert (
        re.sub(r"</?span[^>]*>", "", html)
        .replace("&#x27;", "'")
        .replace("&quot;", '"')
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&")
        == code
    )


@pytest.mark.parametrize("language", ["python", "java", "cpp", "js", "sql", "html", "php", "diff"])
@pytest.mark.parametrize(
    "unit", ["\n ", "\t", "a ", "a.", '"', "'", "\\", "/*", "<!--", '"""', "<", "#", "--", "`", "("]
)
def test_colouring_takes_linear_time(language: str, unit: str) -> None:
    short, long = unit * 2_000, unit * 16_000
    least = seconds(lambda: highlighted(short, language))
    assert seconds(lambda: highlighted(long, language)) < 30 * max(least, 0.001)


@pytest.mark.parametrize("language", ["easytrieve", "gherkin", "autohotkey", "autoit", "fan"])
def test_languages_without_a_linear_pattern_are_not_coloured(language: str) -> None:
    code = "\t" * 2_500
    assert highlighted(code, language) == code


def test_long_code_is_not_coloured() -> None:
    code = "x = 1 # a\n" * (MAX_HIGHLIGHTED // 10 + 1)
    assert "agentic-hl" not in markdown(f"```python\n{code}```")
    half = code[: len(code) * 2 // 3]
    html = markdown(f"```python\n{half}```\n\n```python\n{half}```")
    assert html.partition("</pre>")[0].count("agentic-hl-c")
    assert "agentic-hl" not in html.partition("</pre>")[2]


@pytest.mark.parametrize(
    "unit",
    [
        *("[", "![", "](", "*a ", "**a**", "`", "<", r"\(", "\\[\n", "$$", "$a ", "$$\n"),
        *("http://", "(http://a)", "[^1]", "[^1]: a\n", "- [ ] a\n", "> ", "|", "a|b\n-|-\n"),
        *("![](http://a.example)", "[a]: b\n", "<br>", "<sub>", "[a](<"),
    ],
)
def test_rendering_takes_linear_time(unit: str) -> None:
    short, long = (unit * (n // len(unit)) for n in (2_000, 16_000))
    least = seconds(lambda: render(short))
    assert seconds(lambda: render(long)) < 30 * max(least, 0.002)


# Growing text

LONG = {
    "code": "```python\n" + "".join(f"x = {n} # foo\n" for n in range(10_000)),
    "table": "| a | b |\n|---|---|\n" + "".join(f"| {n} | two |\n" for n in range(3_000)),
    "emphasis": "**a**" * 16_000,
    "words": "".join(f"**{n}** " for n in range(12_000)),
    "list": "".join(f"- item {n}\n" for n in range(8_000)),
    "quote": "".join(f"> line {n}\n" for n in range(8_000)),
    "one line of code": "```\n" + "x" * 150_000,
    "tasks with code": "- a\n\n  ```\n" + "".join(f"  x = {n}\n" for n in range(8_000)),
}


@pytest.mark.parametrize("name", LONG)
def test_growth_costs_the_same_however_long_the_text_is(name: str) -> None:
    text = LONG[name]

    def growths(end: int) -> float:
        blocks(text[:end])
        return seconds(lambda: [blocks(f"{text[:end]}{n}") for n in range(5)]) / 5

    growths(STEP * 3)
    assert growths(len(text)) < 8 * max(growths(STEP * 3), 0.002)


@pytest.mark.parametrize("name", LONG)
def test_growth_changes_only_the_end_of_a_long_text(name: str) -> None:
    text = LONG[name]
    before, after = blocks(text[:-10]), blocks(text)
    same = sum(old == new for old, new in zip(before, after, strict=False))
    assert sum(len(block.source) for block in after[same:]) <= 2 * STEP
    assert "".join(block.source for block in after) == text
    assert sum(len(block.html) for block in after) < 1_000_000


def test_parts_of_a_long_table_repeat_its_header() -> None:
    parts = blocks(LONG["table"])
    assert len(parts) > 2
    assert all("<th>a</th>" in part.html for part in parts)
    assert sum(part.html.count("<td>two</td>") for part in parts) == 3_000


def test_text_after_long_code_is_shown_as_text() -> None:
    html = growing(f"{LONG['code']}```\n\nAnd **then**.")
    assert html.endswith("<p>And <strong>then</strong>.</p>\n")
    assert html.count("<strong>") == 1


def test_text_after_a_long_table_is_shown_as_text() -> None:
    assert growing(f"{LONG['table']}\nAnd **then**.").endswith(
        "<p>And <strong>then</strong>.</p>\n"
    )


def test_code_is_coloured_when_it_is_complete() -> None:
    assert "agentic-hl" not in growing("```python\ndef f")
    assert "agentic-hl-k" in growing("```python\ndef f(): pass\n```\n\nDone")


def test_very_long_growing_text_continues_as_plain_text() -> None:
    text = "word " * 60_000
    assert "".join(block.source for block in blocks(text)) == text
    assert all(len(block.source) <= STEP for block in blocks(text))


# Caches


def test_cache_is_bounded_in_bytes() -> None:
    cache: RenderedCache[str, str] = RenderedCache(100_000, sys.getsizeof)
    for number in range(100):
        cache.get(f"{number}", lambda: "x" * 5_000)
        assert cache.bytes <= 100_000
    assert cache.get("99", lambda: "new") == "x" * 5_000
    assert cache.get("0", lambda: "new") == "new"


def test_cache_counts_its_keys_and_does_not_keep_what_exceeds_its_share() -> None:
    cache: RenderedCache[str, str] = RenderedCache(100_000, sys.getsizeof)
    cache.get("k" * 50_000, lambda: "")
    cache.get("large", lambda: "x" * 50_000)
    assert cache.bytes == 0


def test_caches_of_rendered_texts_are_bounded_in_bytes() -> None:
    for number in range(30):
        markdown(f"{number} " + "word " * 39_000)
        growing(f"{number} " + "word " * 39_000)
    caches = (rendering._rendered, growing_text._steps, growing_text._parts_html)
    assert 0 < sum(cache.bytes for cache in caches) <= 40_000_000
