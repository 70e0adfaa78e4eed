"""German is complete: every text of the code is in the catalogue, and a reader gets it."""

from __future__ import annotations

import ast
import gettext
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from django.utils import timezone
from django.utils.translation import override, pgettext
from django.utils.translation.template import templatize

import agentic_django
from agentic_django.models import AgentRun
from agentic_django.presentation import wording
from tests.support.rows import make_checkpoint, make_events, make_run, make_session

PACKAGE = Path(agentic_django.__file__).parent
CATALOGUE = PACKAGE / "locale/de/LC_MESSAGES/django.po"
COMMANDS = "see the head of locale/de/LC_MESSAGES/django.po"

SINGLE = ("gettext", "gettext_lazy", "gettext_noop")
PLURAL = ("ngettext", "ngettext_lazy")
IN_CONTEXT = ("pgettext", "pgettext_lazy")
PLURAL_IN_CONTEXT = ("npgettext", "npgettext_lazy")
FORMS = {
    **dict.fromkeys(SINGLE, ("msgid",)),
    **dict.fromkeys(PLURAL, ("msgid", "plural")),
    **dict.fromkeys(IN_CONTEXT, ("context", "msgid")),
    **dict.fromkeys(PLURAL_IN_CONTEXT, ("context", "msgid", "plural")),
}
"""What the arguments of each function are."""


@dataclass(frozen=True, order=True)
class Text:
    """A text to be translated."""

    msgid: str
    plural: str = ""
    context: str = ""


@dataclass(frozen=True)
class Entry:
    """A text in the catalogue."""

    text: Text
    strings: tuple[str, ...]
    flags: str

    @property
    def compiled(self) -> dict[Any, str]:
        """The entry as Python reads it from the compiled catalogue."""
        key = f"{self.text.context}\x04" * bool(self.text.context) + self.text.msgid
        if self.text.plural:
            return {(key, number): string for number, string in enumerate(self.strings)}
        return {key: self.strings[0]}


# The code


def texts_of_python(source: str) -> Iterator[Text]:
    """Find what a module translates; only literals can be translated."""
    tree = ast.parse(source)
    imports = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and node.module == "django.utils.translation"
    ]
    known = {each.asname or each.name: each.name for node in imports for each in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):  # Into these, xgettext does not look.
            assert not names_in(node) & known.keys(), ast.unparse(node)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            form = FORMS.get(known.get(node.func.id, ""), ())
            if form:
                given = map(ast.literal_eval, node.args[: len(form)])
                yield Text(**dict(zip(form, given, strict=True)))


def names_in(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


LITERAL = r"""u?(?:"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*')"""
CALL = re.compile(rf"\b(?:_|n?p?gettext)\({LITERAL}(?:, ?(?:{LITERAL}|count))*\)")


def texts_of_template(source: str) -> Iterator[Text]:
    """Find what a template translates, as Django finds it."""
    calls = CALL.findall(templatize(source))
    names = "gettext, gettext as _, ngettext, pgettext, npgettext"
    yield from texts_of_python(f"from django.utils.translation import {names}\n" + "\n".join(calls))


def texts_of_the_code() -> set[Text]:
    """Find what the package translates."""
    modules = [path.read_text() for path in PACKAGE.rglob("*.py") if "migrations" not in path.parts]
    templates = [path.read_text() for path in PACKAGE.rglob("*.html")]
    found = [text for source in modules for text in texts_of_python(source)]
    return {*found, *(text for source in templates for text in texts_of_template(source))}


def test_texts_are_found_in_python() -> None:
    source = """
from django.utils.translation import gettext as _, gettext_lazy, ngettext, npgettext_lazy, pgettext
a = _("one " "line")
b = gettext_lazy("later") if a else ngettext("%d run", "%d runs", 2)
c = [pgettext("unit", "s"), npgettext_lazy("ago", "day", "days", "num")]
d = print("not this")
"""
    assert set(texts_of_python(source)) == {
        Text("one line"),
        Text("later"),
        Text("%d run", "%d runs"),
        Text("s", context="unit"),
        Text("day", "days", "ago"),
    }


def test_texts_are_found_in_templates() -> None:
    source = """{% load i18n %}{% translate "It's" %}{{ title|default:_("None") }}
{% translate "s" context "unit" %}{% include "a.html" with b=_("c") %}{% comment %}{% endcomment %}
{% blocktranslate with a=b %}Do {{ a }}{% endblocktranslate %}
{% blocktranslate count n=n %}{{ n }} day{% plural %}{{ n }} days{% endblocktranslate %}"""
    assert set(texts_of_template(source)) == {
        Text("It's"),
        Text("None"),
        Text("s", context="unit"),
        Text("c"),
        Text("Do %(a)s"),
        Text("%(n)s day", "%(n)s days"),
    }


# The catalogue


def entries() -> list[Entry]:
    """Read the catalogue, without its head."""
    blocks = CATALOGUE.read_text().strip().split("\n\n")
    return [entry for entry in map(_entry, blocks) if entry.text.msgid]


def _entry(block: str) -> Entry:
    fields: dict[str, str] = {}
    name = flags = ""
    for line in block.splitlines():
        if line.startswith("#"):
            flags += line if line.startswith("#,") else ""
            continue
        keyword, quote, rest = line.partition('"')
        name = keyword.strip() or name
        fields[name] = fields.get(name, "") + ast.literal_eval(quote + rest)
    strings = tuple(text for name, text in fields.items() if name.startswith("msgstr"))
    text = Text(fields["msgid"], fields.get("msgid_plural", ""), fields.get("msgctxt", ""))
    return Entry(text, strings, flags)


def placeholders(text: str) -> list[str]:
    return sorted(re.findall(r"%\(\w+\)[a-z]|%[a-z%]|\{\w*\}", text))


def test_every_text_of_the_code_is_in_the_catalogue() -> None:
    known = {entry.text for entry in entries()}
    assert sorted(texts_of_the_code() - known) == [], f"Translate these; {COMMANDS}."
    assert sorted(known - texts_of_the_code()) == [], f"Remove these; {COMMANDS}."


def test_every_text_is_translated() -> None:
    assert [entry.text for entry in entries() if not all(entry.strings)] == []
    assert [entry.text for entry in entries() if "fuzzy" in entry.flags] == []
    forms = {bool(entry.text.plural): len(entry.strings) for entry in entries()}
    assert forms == {False: 1, True: 2}


def test_translations_keep_placeholders() -> None:
    for entry in entries():
        expected = placeholders(entry.text.plural or entry.text.msgid)
        for string in entry.strings:
            assert placeholders(string) == expected, entry


def test_translations_keep_the_ends_of_a_text() -> None:
    for entry in entries():
        for string in entry.strings:
            for end in (".", "…", ":", "?"):
                assert string.endswith(end) == entry.text.msgid.endswith(end), entry


def test_compiled_catalogue_matches_its_source() -> None:
    with CATALOGUE.with_suffix(".mo").open("rb") as file:
        compiled = dict(gettext.GNUTranslations(file)._catalog)  # type: ignore[attr-defined]
    compiled.pop("")
    expected: dict[Any, str] = {}
    for entry in entries():
        expected |= entry.compiled
    assert compiled == expected, f"Compile it; {COMMANDS}."


# What a reader gets


@pytest.fixture
def visit(settings: Any, user: User) -> Iterator[Callable[..., Any]]:
    """Ask for a page in a language: ``visit("de", path)``."""
    at = settings.MIDDLEWARE.index("django.middleware.common.CommonMiddleware")
    locale = "django.middleware.locale.LocaleMiddleware"
    settings.MIDDLEWARE = [*settings.MIDDLEWARE[:at], locale, *settings.MIDDLEWARE[at:]]
    client = Client()
    client.force_login(user)

    def ask(language: str, path: str, method: str = "get", **options: Any) -> Any:
        headers = {"Accept": "text/html", "Accept-Language": language, **options.pop("headers", {})}
        return getattr(client, method)(path, headers=headers, **options)

    with override("en", deactivate=True):  # The middleware leaves its language active.
        yield ask


GERMAN = {
    "pending": "In der Warteschlange",
    "running": "Nutzt find_order\N{NO-BREAK SPACE}…",
    "waiting": "Wartet auf Genehmigung",
    "completed": "Fertig nach 2,5 s",
    "failed": "Nach 2,5 s fehlgeschlagen",
    "cancelled": "Nach 2,5 s gestoppt",
    "timed_out": "Zeit überschritten nach 2,5 s",
}

DATA = {"Echo", "Hello", "find_order", "number 1042"}
"""What the rows hold, and no language changes."""

UNITS = r"\+?[\d.,]+ m?s"


@pytest.fixture
def make(user: User) -> Callable[[str], AgentRun]:
    """Make a run in a state, which has called a tool."""

    def made(status: str, **columns: Any) -> AgentRun:
        run = make_run(user, status, session=make_session(user, session_key="s"), **columns)
        called = {"call_id": "c", "tool": "find_order", "arguments": {"number": 1042}}
        make_events(run, 1, event_type="tool.called", payload=called)
        retried = {"attempt": 1, "reason": "lost", "delay_seconds": 1}
        make_events(run, 1, event_type="run.retrying", payload=retried)
        failed = {"error": "It took too long.", "code": "timed_out"}
        make_events(run, 1, event_type="run.timed_out", payload=failed)
        if run.finished_at:
            started = run.finished_at - timedelta(seconds=2.5)
            AgentRun.objects.filter(pk=run.pk).update(started_at=started)
        return run

    return made


class Words(HTMLParser):
    """What a person reads or hears of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: set[str] = set()
        self.inside: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.inside.append(tag)
        shown = ("aria-label", "placeholder", "title", "alt", "data-agentic-unsent")
        self.found |= {value for name, value in attrs if name in shown and value}

    def handle_endtag(self, tag: str) -> None:
        while self.inside and self.inside.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if not {"script", "style", "code", "pre"} & set(self.inside):
            self.found.add(" ".join(data.split()))


def alike(visit: Callable[..., Any], path: str, **options: Any) -> set[str]:
    """Return the words that are the same in both languages."""
    english, german = (Words(visit(code, path, **options).text).found for code in ("en", "de"))
    return {text for text in english & german if re.search(r"[^\W\d_]", text)} - DATA


@pytest.mark.parametrize("status", AgentRun.Status.values)
def test_run_is_shown_in_the_language_of_the_reader(
    visit: Callable[..., Any], make: Callable[..., AgentRun], status: str
) -> None:
    path = reverse("agents:run-detail", args=[make(status, error_code="timed_out").pk])
    page = visit("de", path).text
    assert '<html lang="de"' in page
    assert GERMAN[status] in page
    with override("de"):
        assert str(AgentRun.Status(status).label) in page
    assert {text for text in alike(visit, path) if not re.fullmatch(UNITS, text)} == set()


@pytest.mark.django_db
@pytest.mark.parametrize("status", AgentRun.Status.values)
def test_run_is_shown_in_the_language_of_the_site(
    client: Client, settings: Any, make: Callable[..., AgentRun], status: str
) -> None:
    settings.LANGUAGE_CODE = "de"
    run = make(status)
    path = reverse("agents:run-fragment", args=[run.pk])
    assert GERMAN[status] in client.get(path, headers={"HX-Request": "true"}).text


def test_admin_is_in_german(
    visit: Callable[..., Any], make: Callable[..., AgentRun], user: User
) -> None:
    run = make("failed", error_code="timed_out")
    make_checkpoint(run)
    User.objects.filter(pk=user.pk).update(is_staff=True, is_superuser=True)
    lists = visit("de", reverse("admin:app_list", args=["agentic_django"])).text
    page = visit("de", reverse("admin:agentic_django_agentrun_change", args=[run.pk])).text
    for name in ("Agenten", "Läufe", "Sitzungen", "Ereignisse"):
        assert name in lists
    for name in (
        "Fehlercode",
        "Reserviert bis",
        "Fehlgeschlagen",
        "Letzte Ereignisse",
        "Laufoptionen",
    ):
        assert name in page
    for action in ("stop_runs", "retry_runs"):
        data = {"action": action, "_selected_action": [str(run.pk)]}
        path = reverse("admin:agentic_django_agentrun_changelist")
        page = visit("de", path, "post", data=data, follow=True).text
    assert "1 Lauf wurde neu eingereiht." in page


@pytest.mark.parametrize(
    ("path", "method", "data", "words"),
    [
        ("runs/00000000-0000-0000-0000-000000000000/", "get", {}, "Nicht gefunden"),
        ("runs/", "put", {}, "PUT ist hier nicht erlaubt."),
        ("runs/", "post", {"input": " "}, "Nötig ist ein Text, der nicht leer ist"),
        ("runs/", "post", {"input": "Hi", "agent_key": "eco"}, "War &#x27;echo&#x27; gemeint?"),
        ("runs/", "post", {"input": "Hi", "inptu": "Hi"}, "Unbekanntes Feld. War"),
    ],
)
def test_rejection_is_in_german(
    visit: Callable[..., Any], path: str, method: str, data: dict[str, str], words: str
) -> None:
    page = visit("de", f"/agents/{path}", method, data=data).text
    assert words in page


def test_refused_agent_and_busy_conversation_are_in_german(
    visit: Callable[..., Any], make: Callable[..., AgentRun], settings: Any
) -> None:
    make("waiting")
    data = {"input": "Hi", "agent_key": "echo", "session_key": "s", "on_busy": "reject"}
    busy = visit("de", "/agents/runs/", "post", data=data)
    assert "Ein anderer Lauf in dieser Unterhaltung ist noch nicht beendet." in busy.text
    settings.AGENTIC_DJANGO_AGENT_ACCESS = f"{__name__}.nobody"
    refused = visit("de", "/agents/runs/", "post", data=data)
    assert "Sie haben keine Berechtigung, diesen Agenten zu verwenden." in refused.text


def nobody(request: Any, agent_key: str) -> bool:
    return False


def test_times_are_declined() -> None:
    with override("de"):
        days = wording.ago(timezone.now() - timedelta(days=2))
        minute = wording.ago(timezone.now() - timedelta(seconds=61))
    assert [days, minute] == ["vor 2\xa0Tagen", "vor 1\xa0Minute"]


def test_elapsed_time_has_three_units() -> None:
    with override("de"):
        assert pgettext("units of duration", "h m s").split() == ["h", "min", "s"]
        assert wording.duration(161) == "2 min 41 s"
        assert wording.duration(7260) == "2 h 1 min"


def test_person_who_requested_a_retry_is_named_in_the_language_of_the_reader() -> None:
    with override("de"):
        assert wording.event_summary({"reason": "by ada"}) == "Erneuter Versuch angefordert von ada"
        assert (wording.event("log"), wording.event("error")) == ("Hinweis", "Fehler")
