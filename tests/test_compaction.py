"""How much of a conversation a run sees: limits, and what a host's hook makes of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from agents import RunConfig
from asgiref.sync import async_to_sync
from django.contrib.auth.models import User

from agentic_django.engine import session_items
from agentic_django.engine.attempt import Attempt
from agentic_django.models import AgentRun, AgentSession
from agentic_django.sessions import RunHistory
from tests.support.attempts import AWAY, finish
from tests.support.rows import make_run, make_session
from tests.test_sessions import said, texts

pytestmark = pytest.mark.django_db

type Carry = Callable[..., AgentRun]


def answer(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def history(run: AgentRun) -> Callable[..., list[Any]]:
    return async_to_sync(RunHistory(Attempt(run)).get_items)


@pytest.fixture
def talk(user: User) -> AgentSession:
    session = make_session(user)
    session_items.append_items(session, [said("1"), answer("2"), said("3"), answer("4"), said("5")])
    return session


# Limits


def test_a_run_option_limits_what_the_model_is_shown(
    carry: Carry, scripted: Any, talk: AgentSession
) -> None:
    model = scripted("default", "Seen.")
    carry(session=talk, config={}, given="6", metadata={})
    assert texts(model.calls[0].input) == ["1", "2", "3", "4", "5", "6"]


def test_a_hosts_run_options_limit_it_too(
    carry: Carry, scripted: Any, talk: AgentSession, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_DEFAULT_RUN_OPTIONS = {"session_settings": {"limit": 3}}
    model = scripted("default", "Seen.")
    carry(session=talk, given="6")
    assert texts(model.calls[0].input) == ["3", "4", "5", "6"]


def test_a_limit_begins_where_a_person_speaks(user: User, talk: AgentSession) -> None:
    run = make_run(user, "running", session=talk)
    assert texts(history(run)(limit=4)) == ["3", "4", "5"]


def test_what_a_limit_left_out_is_read_when_it_is_asked_for(
    user: User, talk: AgentSession, django_assert_num_queries: Any
) -> None:
    run = make_run(user, "running", session=talk)
    seen = RunHistory(Attempt(run))

    async def look() -> list[int]:
        asked = [await seen.get_items(limit=2), await seen.get_items(limit=1)]
        return [len(items) for items in [*asked, await seen.get_items()]]

    with django_assert_num_queries(2):
        assert async_to_sync(look)() == [1, 1, 5]


def test_nothing_is_read_of_a_conversation_that_is_empty(
    user: User, django_assert_num_queries: Any
) -> None:
    run = AgentRun.objects.select_related("session").get(
        pk=make_run(user, "running", session=make_session(user)).pk
    )
    with django_assert_num_queries(0):
        assert history(run)() == []


def test_session_settings_are_a_field_of_the_sdks_run_config() -> None:
    assert "session_settings" in RunConfig.__dataclass_fields__


# Compaction


def shortened(session: AgentSession, items: list[Any]) -> list[Any] | None:
    """Keep the last two of more than four items, behind a summary."""
    if len(items) <= 4:
        return None
    return [said(f"{len(items) - 2} items of {session.item_count} are left out."), *items[-2:]]


async def shortened_later(session: AgentSession, items: list[Any]) -> list[Any] | None:
    return shortened(session, items)


@pytest.fixture(params=[shortened, shortened_later])
def compacting(request: pytest.FixtureRequest, settings: Any) -> None:
    settings.AGENTIC_DJANGO_COMPACT_HISTORY = request.param


@pytest.mark.usefixtures("compacting")
def test_a_hook_says_what_this_run_and_later_ones_see(
    carry: Carry, scripted: Any, talk: AgentSession
) -> None:
    model = scripted("default", "7", "9")
    carry(session=talk, given="6")
    first = ["3 items of 5 are left out.", "4", "5"]
    assert texts(model.calls[0].input) == [*first, "6"]
    talk.refresh_from_db()
    assert texts(talk.compacted_items) == first
    carry(session=talk, given="8")
    assert texts(model.calls[1].input)[0] == "3 items of 7 are left out."
    assert talk.items.count() == 9


@pytest.mark.usefixtures("compacting")
def test_a_person_reads_the_whole_conversation(
    carry: Carry, scripted: Any, talk: AgentSession
) -> None:
    scripted("default", "7")
    carry(session=talk, given="6")
    contents = [message["content"] for message in talk.get_message_history()]
    assert contents == ["1", "2", "3", "4", "5", "6", "7"]


def test_another_attempt_sees_the_same_and_the_hook_is_not_called_again(
    carry: Carry, scripted: Any, talk: AgentSession, settings: Any
) -> None:
    calls = []

    def compact(session: AgentSession, items: list[Any]) -> list[Any] | None:
        calls.append(len(items))
        return shortened(session, items)

    settings.AGENTIC_DJANGO_COMPACT_HISTORY = compact
    model = scripted("default", AWAY, "Done.")
    run = carry(session=talk, given="6")
    assert (run.status, run.attempt) == ("completed", 2)
    assert calls == [5]
    assert model.calls[0].input == model.calls[1].input


def test_a_hook_that_returns_none_changes_nothing(
    carry: Carry, scripted: Any, talk: AgentSession, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_COMPACT_HISTORY = lambda session, items: None
    model = scripted("default", "7")
    carry(session=talk, given="6")
    assert len(model.calls[0].input) == 6
    talk.refresh_from_db()
    assert (talk.compacted_items, talk.compacted_through) == (None, 0)


def test_a_hook_that_fails_fails_the_run(
    carry: Carry, scripted: Any, talk: AgentSession, settings: Any
) -> None:
    def fail(session: AgentSession, items: list[Any]) -> None:
        raise ValueError("The summary is missing.")

    settings.AGENTIC_DJANGO_COMPACT_HISTORY = fail
    scripted("default", "7")
    run = finish(make_run(talk.owner, "pending", session=talk, agent_key="default"))
    assert run.status == "failed"
    assert "The summary is missing." in run.error_detail
