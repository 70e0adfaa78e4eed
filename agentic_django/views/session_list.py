"""One page of the list of conversations, filtered and searched, with the URLs of other pages."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.urls import reverse
from django.utils.functional import cached_property

from agentic_django.models import AgentSession
from agentic_django.models.querysets import SessionQuerySet
from agentic_django.presentation import conversation
from agentic_django.views.schemas import SessionsQuery

__all__ = ["SessionList", "list_sessions"]

PAGE_SIZE = 50


@dataclass(frozen=True)
class SessionList:
    """One page of conversations, and the query that selected them."""

    sessions: list[AgentSession]
    query: SessionsQuery
    has_next: bool

    @cached_property
    def days(self) -> list[tuple[str, list[AgentSession]]]:
        """The conversations, grouped by the day of their last use."""
        return conversation.by_day(self.sessions)

    @property
    def url(self) -> str:
        """The URL of this page."""
        return self._url(page=self.query.page)

    @property
    def next_url(self) -> str:
        """The URL of the next page; empty on the last page."""
        return self._url(page=self.query.page + 1) if self.has_next else ""

    @property
    def other_url(self) -> str:
        """The URL of the archived conversations; of the current ones if this page is archived."""
        return self._url(page=1, archived=not self.query.archived)

    def _url(self, **changes: Any) -> str:
        parameters = {**self.query.model_dump(exclude_defaults=True), **changes}
        if parameters.get("page") == 1:
            del parameters["page"]
        query = urlencode(
            {name: "1" if value is True else value for name, value in parameters.items() if value}
        )
        return reverse("agents:session-list") + (f"?{query}" if query else "")


def list_sessions(sessions: SessionQuerySet, query: SessionsQuery) -> SessionList:
    """Return a page of conversations, the last used first, in one query."""
    found = sessions.archived() if query.archived else sessions.not_archived()
    if query.q:
        found = found.matching(query.q)
    start = (query.page - 1) * PAGE_SIZE
    newest = found.with_last_status().order_by("-updated_at", "-pk")
    rows = list(newest[start : start + PAGE_SIZE + 1])
    return SessionList(rows[:PAGE_SIZE], query, has_next=len(rows) > PAGE_SIZE)
