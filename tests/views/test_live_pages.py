"""A conversation's page in mid-answer: whatever happens, the text ends as the model's, once."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from django.contrib.auth.models import User
from playwright.sync_api import Page, expect

from agentic_django import services
from agentic_django.models import AgentDraft, AgentRun
from tests.support.openai_server import OpenAIServer, Reply, _Handler
from tests.support.processes import Process, Project, wait_until
from tests.support.proxy import Proxy
from tests.support.rows import make_session

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PARAGRAPHS = [
    "The parcel left Leipzig this morning at six.",
    "It reached the depot in Halle before noon, where it waits for its driver.",
    "- he leaves at eight\n- he rings twice",
    "You will have it tomorrow, I am sure of it, and if not then the day after.",
]
TEXT = "\n\n".join(PARAGRAPHS)
SLOWLY = Reply(TEXT, delay=0.14)


@pytest.fixture
def site(in_project: Project, openai_server: OpenAIServer) -> Project:
    """A project on PostgreSQL and RQ, whose agent asks a provider that streams."""
    in_project.settings = "tests.settings_live"
    in_project.extra["AGENTIC_TEST_LEASE_SECONDS"] = "3"
    return in_project


@pytest.fixture
def ada(site: Project) -> User:
    user = User.objects.create_user("ada", "ada@example.com", "ada-password")
    make_session(user, session_key="talk", agent_key="http")
    return user


@pytest.fixture
def worker(site: Project) -> Iterator[Process]:
    with site.rq_worker() as process:
        yield process


@pytest.fixture
def server(site: Project) -> Iterator[Process]:
    with site.web_server() as process:
        yield process


type Ask = Callable[..., Page]


@pytest.fixture
def ask(open_page: Any, ada: User, worker: Process, openai_server: OpenAIServer) -> Ask:
    """Ask in a conversation, and return its page when the first words are there."""

    def ask(url: str, *answers: Reply, **options: Any) -> Page:
        openai_server.enqueue(*(answers or (SLOWLY,)))
        page: Page = open_page(base_url=url, user=ada, **options)
        page.goto("/agents/sessions/talk/")
        page.get_by_label("Message").fill("Where is it?")
        page.get_by_role("button", name="Send").click()
        expect(draft(page)).to_contain_text("The parcel left", timeout=30_000)
        return page

    return ask


def draft(page: Page) -> Any:
    return page.locator(".agentic-draft")


def expect_the_answer(page: Page) -> None:
    """The run has completed, and the page has the model's words once."""
    expect(page.locator(".agentic-run")).to_have_attribute(
        "data-status", "completed", timeout=60_000
    )
    expect(draft(page)).to_have_count(0)
    run = AgentRun.objects.get()
    assert run.final_output == TEXT
    said = page.locator(".agentic-reply").inner_text()
    for line in TEXT.replace("- ", "").split("\n"):
        assert said.count(line) == (1 if line else said.count(line)), said
    assert not AgentDraft.objects.exists()


@pytest.mark.parametrize("application", ["tests.asgi", "tests.asgi_htmx4"])
def test_text_grows_without_polling_or_flicker(site: Project, ask: Ask, application: str) -> None:
    with site.web_server(f"{application}:application") as server:
        page = ask(server.url)
        asked: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        first = page.locator(".agentic-draft > p").first
        expect(page.locator(".agentic-draft > p")).to_have_count(2)
        page.evaluate("document.querySelector('.agentic-draft > p').dataset.mark = 'kept'")
        expect(draft(page)).to_contain_text("rings twice", timeout=20_000)
        assert first.get_attribute("data-mark") == "kept"
        assert [url for url in asked if "/fragment/" in url] == []
        expect_the_answer(page)
        assert 1 <= len([url for url in asked if "/fragment/" in url]) <= 4


def test_page_is_accessible_while_its_text_grows(server: Process, ask: Ask) -> None:
    page = ask(server.url, Reply(TEXT, delay=1.0))
    assert Axe().run(page).response["violations"] == []
    expect(draft(page)).to_contain_text("The parcel left")
    assert AgentRun.objects.get().is_active


def test_reload_shows_the_text_so_far_and_continues(server: Process, ask: Ask) -> None:
    page = ask(server.url)
    expect(draft(page)).to_contain_text("depot", timeout=20_000)
    page.reload()
    expect(draft(page)).to_contain_text("The parcel left Leipzig this morning at six.")
    expect(draft(page)).to_contain_text("rings twice", timeout=20_000)
    expect_the_answer(page)


def test_turn_from_another_page_appears_immediately(
    server: Process, ask: Ask, ada: User, openai_server: OpenAIServer
) -> None:
    page = ask(server.url)
    expect_the_answer(page)
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    openai_server.enqueue(SLOWLY)
    services.submit_agent_run(owner=ada, session_key="talk", input_payload="And now?")
    expect(page.locator(".agentic-bubble").get_by_text("And now?")).to_be_visible()
    expect(draft(page)).to_contain_text("rings twice", timeout=20_000)
    assert 1 <= len([url for url in asked if "/turns/" in url]) <= 2
    expect(page.locator(".agentic-run")).to_have_count(2)


def test_second_tab_shows_the_text_so_far_and_continues(server: Process, ask: Ask) -> None:
    page = ask(server.url)
    expect(draft(page)).to_contain_text("depot", timeout=20_000)
    other = page.context.new_page()
    other.goto(page.url)
    for tab in (other, page):
        expect(draft(tab)).to_contain_text("rings twice", timeout=20_000)
    for tab in (other, page):
        expect_the_answer(tab)


def test_page_reconnects_after_a_restart_of_the_server(
    server: Process, ask: Ask, problems: Any
) -> None:
    problems.allow(
        "htmx:|ERR_CONNECTION_REFUSED|ERR_INCOMPLETE_CHUNKED|ERR_CONNECTION_RESET|ERR_EMPTY"
    )
    page = ask(server.url)
    server.kill()
    server.start()
    expect_the_answer(page)


def test_killed_worker_is_shown_and_another_one_continues(
    site: Project, server: Process, ask: Ask, worker: Process
) -> None:
    page = ask(server.url, SLOWLY, Reply(TEXT, delay=0.05))
    worker.kill()
    expect(page.get_by_role("status").filter(has_text="Reconnecting")).to_be_visible(timeout=30_000)
    expect(draft(page)).to_contain_text("The parcel left")
    with site.rq_worker():
        expect_the_answer(page)
    assert AgentRun.objects.get().attempt == 2


@pytest.mark.parametrize("fault", ["cut", "freeze"])
def test_page_reconnects_after_the_network_drops(
    server: Process, ask: Ask, problems: Any, fault: str
) -> None:
    problems.allow("net::ERR_|htmx:")
    with Proxy(server.url) as network:
        page = ask(network.url)
        getattr(network, fault)()
        before = draft(page).inner_text()
        wait_until(lambda: AgentDraft.objects.filter(text__contains="rings").exists())
        assert draft(page).inner_text() == before
        network.mend()
        expect_the_answer(page)


def test_without_javascript_the_text_so_far_is_there(
    server: Process, ask: Ask, open_page: Any, ada: User
) -> None:
    page = ask(server.url)
    plain: Page = open_page(base_url=server.url, user=ada, javascript=False)
    plain.goto("/agents/sessions/talk/")
    expect(draft(plain)).to_contain_text("The parcel left")
    expect_the_answer(page)
    plain.reload()
    expect_the_answer(plain)


def test_text_is_in_the_page_soon_after_the_model_said_it(
    server: Process, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[tuple[float, int]] = []
    real = _Handler._send_event

    def send(self: Any, event: dict[str, Any]) -> None:
        if event["type"] == "response.output_text.delta":
            said.append((time.time() * 1000, len(event["delta"]) + (said[-1][1] if said else 0)))
        real(self, event)

    monkeypatch.setattr(_Handler, "_send_event", send)
    words = "The parcel left " + "and went on and on " * 25 + "to you."
    page = ask(server.url, Reply(words, delay=0.14))
    page.evaluate(
        """() => {
            const place = document.querySelector(".agentic-draft");
            window.shown = [];
            const note = () => window.shown.push([Date.now(), place.textContent.trimEnd().length]);
            new MutationObserver(note).observe(place, { childList: true });
        }"""
    )
    expect(page.locator(".agentic-run")).to_have_attribute(
        "data-status", "completed", timeout=60_000
    )
    shown = page.evaluate("window.shown")
    first = shown[0][1]
    lags = [
        next(moment for moment, length in shown if length >= until - 1) - at
        for at, until in said
        if first < until <= shown[-1][1]
    ]
    assert len(lags) > 20
    assert statistics.median(lags) < 300
