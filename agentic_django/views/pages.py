"""Whole pages, for browsers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.http import HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.functional import cached_property

from agentic_django.conf import settings
from agentic_django.models import AgentRun, AgentSession
from agentic_django.models.querysets import SessionQuerySet
from agentic_django.presentation import conversation
from agentic_django.views import decorators
from agentic_django.views.negotiation import Request
from agentic_django.views.schemas import SessionsQuery

__all__ = [
    "Listed",
    "listed",
    "new_session",
    "run",
    "session",
    "session_delete",
    "sessions",
]

PAGE_SIZE = 50


@dataclass(frozen=True)
class Listed:
    """One page of the list of conversations, and what was asked for."""

    sessions: list[AgentSession]
    asked: SessionsQuery
    has_next: bool

    @cached_property
    def days(self) -> list[tuple[str, list[AgentSession]]]:
        """The conversations under the days on which they were last used."""
        return conversation.by_day(self.sessions)

    @property
    def address(self) -> str:
        """Where this list is got again."""
        return self._address(page=self.asked.page)

    @property
    def next(self) -> str:
        """Where the list goes on; empty at its end."""
        return self._address(page=self.asked.page + 1) if self.has_next else ""

    @property
    def other(self) -> str:
        """Where those are that are put aside, or those that are not."""
        return self._address(page=1, archived=not self.asked.archived)

    def _address(self, **changes: Any) -> str:
        asked = {**self.asked.model_dump(exclude_defaults=True), **changes}
        shown = {name: value for name, value in asked.items() if value and (name, value) != _FIRST}
        query = urlencode({name: "1" if value is True else value for name, value in shown.items()})
        return reverse("agents:session-list") + (f"?{query}" if query else "")


_FIRST = ("page", 1)


def listed(rows: SessionQuerySet, asked: SessionsQuery) -> Listed:
    """Return a page of these conversations, the last used first, in one statement."""
    found = rows.archived() if asked.archived else rows.not_archived()
    if asked.q:
        found = found.matching(asked.q)
    start = (asked.page - 1) * PAGE_SIZE
    newest = found.with_last_status().order_by("-updated_at", "-pk")
    shown = list(newest[start : start + PAGE_SIZE + 1])
    return Listed(shown[:PAGE_SIZE], asked, has_next=len(shown) > PAGE_SIZE)


def _page(request: Request, template: str, **context: Any) -> HttpResponse:
    context["base_template"] = settings.BASE_TEMPLATE
    return render(request, f"agentic_django/{template}", context)


def run(request: Request, run: AgentRun) -> HttpResponse:
    """Answer with a run's page."""
    return _page(request, "run.html", run=run, session=run.session)


def sessions(request: Request, listed: Listed) -> HttpResponse:
    """Answer with the page of all conversations."""
    return _page(request, "sessions.html", listed=listed)


def session(request: Request, rows: SessionQuerySet, session: AgentSession) -> HttpResponse:
    """Answer with a conversation's page."""
    beside = listed(rows, SessionsQuery(current=session.session_key))
    return _page(
        request,
        "session.html",
        session=session,
        session_key=session.session_key,
        listed=beside,
        agents=[],
    )


def new_session(request: Request, rows: SessionQuerySet, key: str, chosen: str) -> HttpResponse:
    """Answer with the page on which a conversation begins."""
    return _page(
        request,
        "session.html",
        session=None,
        session_key=key,
        listed=listed(rows, SessionsQuery(current=key)),
        agents=decorators.usable_agents(request),
        agent_key=chosen,
    )


def session_delete(request: Request, session: AgentSession) -> HttpResponse:
    """Answer with the question whether a conversation shall be deleted."""
    return _page(request, "session_delete.html", session=session)
