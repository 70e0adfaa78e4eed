"""Chromium for tests: fixtures that fail a test on any console error or CSP violation.

Playwright's synchronous API keeps an event loop running in the test's thread for as long as it
is started. There ``asyncio.run`` refuses to work, Django's ORM too, and Django's connections are
others than those of synchronous code, with other transactions. So Playwright is started anew for
each browser test (about a second) and lends its loop the thread's own connections meanwhile;
``DJANGO_ALLOW_ASYNC_UNSAFE`` is set just as long, which is safe, as nothing else runs in that
thread. Agents run in the server's thread or process.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from django.conf import settings
from django.db import connections
from django.test import Client
from django_htmx.jinja import htmx_script
from playwright.sync_api import (
    Browser,
    ConsoleMessage,
    Page,
    Request,
    ViewportSize,
    sync_playwright,
)

from agentic_django.templatetags import agentic_django_tags

ARTIFACTS = Path(__file__).resolve().parents[1] / "artifacts"
# scripts/lib.sh looks for these too, and installs Chromium where it finds none.
BROWSERS = [
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
]
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
NARROW = ViewportSize(width=360, height=740)
WIDE = ViewportSize(width=1280, height=800)
_REPORT_VIOLATIONS = """
document.addEventListener("securitypolicyviolation", (event) => console.error(
    `CSP violation: ${event.violatedDirective} ${event.blockedURI} ${event.sourceFile}`));
"""


def chromium_path() -> str:
    """Return the path of the installed Chromium or Chrome; fail the test if none is installed."""
    for name in BROWSERS:
        if path := shutil.which(name):
            return path
    pytest.fail("Browser tests need Chromium. On Debian: apt-get install chromium")


class Problems:
    """What went wrong in the browser; a test may ``allow`` what it provokes."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self._allowed: list[str] = []

    def allow(self, pattern: str) -> None:
        """Expect problems that match a regular expression, for example ``status of 422``."""
        self._allowed.append(pattern)

    def watch(self, page: Page) -> None:
        """Collect a page's problems from now on."""
        page.on("console", self._on_console)
        page.on("pageerror", lambda error: self.seen.append(f"page error: {error}"))
        page.on("request", self._on_request)

    def _on_console(self, message: ConsoleMessage) -> None:
        where = message.location.get("url", "")
        if message.type == "error" and not where.endswith("/favicon.ico"):
            self.seen.append(f"console: {message.text} ({where})")

    def _on_request(self, request: Request) -> None:
        url = urlsplit(request.url)
        if url.scheme in ("http", "https", "ws", "wss") and url.hostname not in (
            "127.0.0.1",
            "localhost",
        ):
            self.seen.append(f"request to another host: {request.url}")

    def unexpected(self) -> list[str]:
        """Return the problems that no test allowed."""
        return [seen for seen in self.seen if not any(re.search(p, seen) for p in self._allowed)]


@pytest.fixture
def browser(monkeypatch: pytest.MonkeyPatch) -> Iterator[Browser]:
    """A Chromium of this test's own."""
    path = chromium_path()
    lent = {alias: connections[alias] for alias in connections}
    with sync_playwright() as playwright:
        monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
        for alias, connection in lent.items():
            connections[alias] = connection
        chromium = playwright.chromium.launch(executable_path=path, args=ARGUMENTS)
        yield chromium
        chromium.close()
        for alias in lent:
            with suppress(AttributeError):  # A test may have removed it.
                del connections[alias]
    monkeypatch.delenv("DJANGO_ALLOW_ASYNC_UNSAFE")


@pytest.fixture
def problems() -> Iterator[Problems]:
    """The problems of all pages of a test; unexpected ones fail it."""
    found = Problems()
    yield found
    if unexpected := found.unexpected():
        pytest.fail("In the browser:\n" + "\n".join(unexpected))


type OpenPage = Callable[..., Page]


@pytest.fixture
def open_page(browser: Browser, problems: Problems) -> OpenPage:
    """Open a page in a context of its own: ``open_page(dark=True, narrow=True, javascript=False)``.

    ``base_url`` lets the test write ``page.goto("/path")``; ``user`` is logged in there. Other
    keywords go to Playwright's ``new_context``.
    """

    def open_one(
        *,
        base_url: str | None = None,
        user: Any = None,
        dark: bool = False,
        narrow: bool = False,
        javascript: bool = True,
        **options: Any,
    ) -> Page:
        context = browser.new_context(
            base_url=base_url,
            color_scheme="dark" if dark else "light",
            viewport=NARROW if narrow else WIDE,
            java_script_enabled=javascript,
            **options,
        )
        context.set_default_timeout(10_000)
        context.add_init_script(_REPORT_VIOLATIONS)
        page = context.new_page()
        problems.watch(page)
        if user is not None:
            assert base_url is not None, "To log in somewhere, give a base_url."
            log_in(page, base_url, user)
        return page

    return open_one


@pytest.fixture
def page(open_page: OpenPage) -> Page:
    """A page with the default options."""
    return open_page()


def log_in(page: Page, base_url: str, user: Any) -> None:
    """Give the page's context the session of a user, who is in this process's database."""
    client = Client()
    client.force_login(user)
    name = settings.SESSION_COOKIE_NAME
    cookie = {"name": name, "value": client.cookies[name].value, "url": base_url}
    page.context.add_cookies([cookie])  # type: ignore[list-item]


def visiting(open_page: OpenPage, base_url: str, user: Any) -> Callable[..., Page]:
    """Return what opens an address in a page of its own, as this user."""

    def visit(path: str, **options: Any) -> Page:
        page = open_page(base_url=base_url, user=user, **options)
        page.goto(path)
        return page

    return visit


@pytest.fixture(params=[2, 4], ids=["htmx 2", "htmx 4"])
def htmx(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """The pages load this version of htmx."""
    versioned = partial(htmx_script, version=request.param)
    monkeypatch.setattr(agentic_django_tags, "htmx_script", versioned)
    version: int = request.param
    return version


@pytest.fixture
def visit(htmx: int, live_server: Any, open_page: OpenPage, user: Any) -> Callable[..., Page]:
    """Open an address of the app as Ada, with each of the versions of htmx."""
    return visiting(open_page, live_server.url, user)


@pytest.fixture
def screenshot() -> Callable[..., Path]:
    """Save a picture of the whole page: ``screenshot(page, "conversation-dark")``.

    ``whole=False`` saves what is in the window, for pages with parts that stay in view.
    """

    def save(page: Page, name: str, *, whole: bool = True) -> Path:
        ARTIFACTS.mkdir(exist_ok=True)
        (ARTIFACTS / ".gitignore").write_text("*\n")
        path = ARTIFACTS / f"{name}.png"
        page.screenshot(path=path, full_page=whole)
        return path

    return save
