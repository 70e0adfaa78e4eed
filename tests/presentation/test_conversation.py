"""Items and runs to messages, and text to HTML that is safe."""

from __future__ import annotations

from html.parser import HTMLParser
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.contrib.auth.models import User
from django.utils.translation import override

from agentic_django.engine import session_items
from agentic_django.engine.events import EventType
from agentic_django.models import AgentEvent, AgentRun, AgentSession
from agentic_django.presentation import conversation, outputs
from agentic_django.presentation.conversation import Message, ToolCard
from agentic_django.presentation.markdown import markdown
from tests.support.statements import at_most

ATTACKS = [
    "<script>alert(1)</script>",
    '<img src=x onerror="alert(1)">',
    "[click](javascript:alert(1))",
    "[click](JaVaScRiPt:alert(1))",
    "[click](data:text/html;base64,PHNjcmlwdD4=)",
    "[click](vbscript:x)",
    '[click](https://a.example "onmouseover=alert(1)")',
    "<javascript:alert(1)>",
    '```"><script>alert(1)</script>\ncode\n```',
    "```html\n<script>alert(1)</script>\n```",
    "| <b onclick=alert(1)>a</b> |\n|---|\n| <svg/onload=alert(1)> |",
    "![<script>alert(1)</script>](https://a.example/x.png)",
    '<a href="https://a.example" style="position:fixed">x</a>',
    "<style>body{display:none}</style>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
]


# Markdown


class Elements(HTMLParser):
    """The elements and attributes of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


@pytest.mark.parametrize("text", ATTACKS)
def test_markdown_contains_no_scripts(text: str) -> None:
    for tag, attributes in Elements(markdown(text)).found:
        assert tag in "p a pre code span div table thead tbody tr th td".split()
        assert set(attributes) <= {"href", "title", "rel", "class", "tabindex", "align", "target"}
        assert urlsplit(attributes.get("href") or "").scheme in ("", "http", "https", "mailto")


def test_markdown_shows_tables_lists_and_emphasis() -> None:
    html = markdown("| a | b |\n|---|--:|\n| 1 | 2 |\n\n- **x**\n- ~~y~~")
    for expected in ("<table>", '<td align="right">2</td>', "<strong>x</strong>", "<s>y</s>"):
        assert expected in html


def test_link_sends_no_referrer() -> None:
    html = markdown("[shop](https://shop.example/?a=1&b=2)")
    assert 'href="https://shop.example/?a=1&amp;b=2"' in html
    assert 'rel="noopener noreferrer nofollow"' in html


def test_image_becomes_a_link_and_is_never_loaded() -> None:
    html = markdown("![chart](https://a.example/leak?q=secret)")
    assert "<img" not in html
    assert ">chart</a>" in html


def test_image_within_a_link_becomes_its_text() -> None:
    html = markdown("[![chart](https://a.example/c.png)](https://b.example)")
    assert html.count("<a ") == 1
    assert ">chart</a>" in html


def test_image_without_a_web_address_becomes_its_text() -> None:
    assert "<a" not in markdown("![chart](data:image/png;base64,AAAA)")
    assert "chart" in markdown("![chart](/local.png)")


def test_code_is_highlighted_by_classes() -> None:
    html = markdown("```python\ndef f(): return 1\n```")
    assert '<span class="agentic-hl-k">def</span>' in html
    assert "style" not in html


@pytest.mark.parametrize("language", ["", "nosuchlanguage", "python\x00"])
def test_code_in_an_unknown_language_is_shown_plain(language: str) -> None:
    assert "a &lt; b" in markdown(f"```{language}\na < b\n```")


def test_headings_stay_below_the_page_without_skipping_a_level() -> None:
    html = markdown("## a\n#### b\n# c")
    assert '<h3 class="agentic-h2">a</h3>' in html
    assert '<h4 class="agentic-h4">b</h4>' in html
    assert '<h3 class="agentic-h1">c</h3>' in html


def test_lone_surrogates_are_replaced() -> None:
    assert "a\N{REPLACEMENT CHARACTER}b?c" in markdown("a\0b\ud800c")


def test_very_long_text_is_shown_unchanged() -> None:
    html = markdown("**a** <b>" * 30_000)
    assert html.startswith("<pre>**a** &lt;b&gt;")


# Items


def asked(text: Any) -> dict[str, Any]:
    return {"role": "user", "content": text}


def call(name: str = "find_order", arguments: str = '{"number": 1042}') -> dict[str, Any]:
    return {"type": "function_call", "call_id": "c1", "name": name, "arguments": arguments}


def output(value: Any) -> dict[str, Any]:
    return {"type": "function_call_output", "call_id": "c1", "output": value}


def said(text: str) -> dict[str, Any]:
    parts = [{"type": "output_text", "text": text, "annotations": []}]
    return {"type": "message", "role": "assistant", "content": parts}


def test_items_become_messages_in_their_order() -> None:
    found = conversation.messages([asked("Hello"), call(), output("delivered"), said("It came.")])
    assert [message.kind for message in found] == ["user", "tool", "assistant"]
    assert [message.text for message in found] == ["Hello", "", "It came."]


def test_call_and_its_output_become_one_card() -> None:
    (message,) = conversation.messages([call(), output("delivered")])
    assert message.call
    assert (message.call.name, message.call.summary) == ("find_order", "number 1042")
    assert (message.call.arguments_text, message.call.output_text) == ("number: 1042", "delivered")
    assert message.call.has_output


def test_call_without_an_output_has_none() -> None:
    (message,) = conversation.messages([call()])
    assert message.call
    assert not message.call.has_output


def test_output_without_a_call_is_left_out() -> None:
    assert conversation.messages([output("x")]) == []


@pytest.mark.parametrize("role", ["system", "developer", "tool", None, 7])
def test_system_and_developer_messages_are_hidden(role: Any) -> None:
    assert conversation.messages([{"role": role, "content": "Secret instructions"}]) == []


def test_refusal_is_distinguished_from_an_answer() -> None:
    item = {"role": "assistant", "content": [{"type": "refusal", "refusal": "I may not."}]}
    assert conversation.messages([item]) == [Message("refusal", "I may not.")]


def test_reasoning_shows_its_summary_and_nothing_else() -> None:
    item = {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Look it up."}]}
    assert conversation.messages([item]) == [Message("reasoning", "Look it up.")]
    assert conversation.messages([{"type": "reasoning", "encrypted_content": "x"}]) == []


def test_tool_of_the_provider_becomes_a_card() -> None:
    item = {"type": "web_search_call", "id": "w1", "action": {"query": "blue mugs"}}
    (message,) = conversation.messages([item])
    assert message.call
    assert (message.call.name, message.call.summary) == ("web_search", "blue mugs")


@pytest.mark.parametrize(
    "item",
    [
        None,
        "text",
        7,
        [],
        {},
        {"type": "item_reference", "id": "x"},
        {"type": "compaction", "encrypted_content": "x"},
        {"type": 7},
        {"role": "user"},
        {"role": "user", "content": [None, 7, {"type": "new_kind", "data": "x"}]},
        {"role": "assistant", "content": {"a": 1}},
        {"type": "reasoning", "summary": "text"},
    ],
)
def test_unknown_items_are_left_out_or_read_as_text(item: Any) -> None:
    for message in conversation.messages([item, asked("Hello")])[:-1]:
        assert message.text


def test_images_and_files_of_a_user_are_named() -> None:
    parts = [
        {"type": "input_text", "text": "Look"},
        {"type": "input_image", "image_url": "https://a.example/x.png"},
        {"type": "input_file", "filename": "bill.pdf", "file_data": "AAAA"},
    ]
    (message,) = conversation.messages([asked(parts)])
    assert message.text == "Look\n\n[Image]\n\n[File] bill.pdf"


@pytest.mark.parametrize(
    ("arguments", "summary"),
    [
        ({"number": 1042, "note": "x"}, "number 1042"),
        ({"order_number": 7}, "order number 7"),
        ({"dry_run": True, "topic": "damaged\ngoods"}, "damaged goods"),
        ({"empty": "", "none": None, "lines": [1]}, ""),
        ({"text": "x" * 100}, "x" * 79 + "…"),
        ("not JSON", "not JSON"),
        ([1, 2], ""),
        (None, ""),
    ],
)
def test_card_shows_the_first_argument(arguments: Any, summary: str) -> None:
    assert ToolCard("c", "tool", arguments).summary == summary


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ('{"a": 1}', '{\n  "a": 1\n}'),
        ("{not json", "{not json"),
        ({"a": "ü"}, '{\n  "a": "ü"\n}'),
        (
            [{"type": "input_text", "text": "one"}, {"type": "input_text", "text": "two"}],
            "one\n\ntwo",
        ),
        ({"type": "text", "text": "one"}, "one"),
        (None, "null"),
        (3, "3"),
        ("a\0\udfff", "a\N{REPLACEMENT CHARACTER}?"),
    ],
)
def test_any_value_is_shown_as_text(value: Any, text: str) -> None:
    assert conversation.readable(value) == text


def test_deeply_nested_text_is_shown_unchanged() -> None:
    text = "[" * 100_000
    assert conversation.readable(text) == text


def test_deeply_nested_value_is_not_indented() -> None:
    value: list[Any] = []
    for _ in range(400):
        value = [value]
    assert len(conversation.readable(value)) < 1000


def test_card_shows_the_start_of_a_very_long_output() -> None:
    shown = ToolCard("c", "tool", output="x" * 50_000, has_output=True).output_text
    assert shown == "x" * outputs.MAX_SHOWN + "…"


# Runs


def a_run(**fields: Any) -> AgentRun:
    run = AgentRun(agent_key="support", **fields)
    run.step_events = ""
    return run


@pytest.mark.parametrize(
    ("value", "kind", "rows"),
    [
        (None, "none", []),
        ("**yes**", "text", []),
        ({"order": 1042, "is_paid": True}, "facts", [("Order", "1042"), ("Is paid", "yes")]),
        ([{"a": 1}, {"a": None, "b": "x"}], "table", [["1", "–"], ["–", "x"]]),
        (["a", 2], "list", [("a",), ("2",)]),
        ({"a": {"b": 1}}, "json", []),
        ([], "json", []),
        (7, "json", []),
    ],
)
def test_answer_has_its_most_readable_form(value: Any, kind: str, rows: Any) -> None:
    answer = outputs.run_output(a_run(final_output=value))
    assert (answer.kind, list(answer.rows)) == (kind, rows)


@pytest.mark.parametrize(
    ("given", "texts"),
    [
        ("Hello", ["Hello"]),
        ("  ", []),
        ([asked("One"), {"role": "system", "content": "x"}, asked("Two")], ["One", "Two"]),
        ({"order": 1}, ['{\n  "order": 1\n}']),
        ([1, 2], ["[\n  1,\n  2\n]"]),
    ],
)
def test_any_input_becomes_messages(given: Any, texts: list[str]) -> None:
    assert [m.text for m in conversation.input_messages(a_run(input_payload=given))] == texts


@pytest.mark.parametrize(
    ("key", "name"), [("support", "Support"), ("order_desk-2", "Order desk 2"), ("", "")]
)
def test_agent_name_is_its_key_in_words(key: str, name: str) -> None:
    assert conversation.agent_name(AgentRun(agent_key=key)) == name


# Conversations


@pytest.fixture
def session(user: User) -> AgentSession:
    return AgentSession.objects.create(owner=user, session_key="talk")


def add_run(session: AgentSession, text: str, calls: int = 0) -> AgentRun:
    run = AgentRun.objects.create(session=session, agent_key="support", input_payload=text)
    for number in range(calls):
        told = {"call_id": f"c{number}", "tool": "find_order", "arguments": {"number": number}}
        done = {"call_id": f"c{number}", "tool": "find_order", "output": "x"}
        for sequence, (kind, payload) in enumerate(
            [(EventType.TOOL_CALLED, told), (EventType.TOOL_OUTPUT, done)], 2 * number + 1
        ):
            AgentEvent.objects.create(
                run=run, sequence=sequence, event_type=kind, visibility="user", payload=payload
            )
    return run


def test_conversation_has_a_turn_for_each_run_in_order(session: AgentSession) -> None:
    runs = [add_run(session, text) for text in ("One", "Two", "Three")]
    assert list(conversation.turns(session).runs) == runs


def test_messages_without_a_run_come_first(session: AgentSession) -> None:
    session_items.append_items(session, [{"role": "user", "content": "Long ago"}])
    run = add_run(session, "Now")
    session_items.append_items(session, [{"role": "user", "content": "Now"}], run)
    assert [message.text for message in conversation.turns(session).messages] == ["Long ago"]


@pytest.mark.parametrize("runs", [1, 12])
def test_conversation_of_any_length_takes_two_statements(session: AgentSession, runs: int) -> None:
    for number in range(runs):
        add_run(session, str(number), calls=2)
    with at_most(2):
        for run in conversation.turns(session).runs:
            assert run.session == session
            assert [call.output_text for call in conversation.tool_calls(run)] == ["x", "x"]


def test_long_conversation_shows_its_last_turns(
    session: AgentSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversation, "MAX_TURNS", 2)
    runs = [add_run(session, str(number)) for number in range(3)]
    shown = conversation.turns(session)
    assert (list(shown.runs), shown.is_cut) == (runs[1:], True)


def test_images_are_named_in_the_readers_language() -> None:
    with override("en"):
        assert conversation.readable([{"type": "input_image"}]) == "[Image]"
