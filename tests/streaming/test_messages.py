"""What those who watch are told: every event once, and text as it grows."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from django.contrib.auth.models import User
from django.template.loader import render_to_string
from django.utils import timezone

from agentic_django.models import AgentDraft, AgentEvent, AgentRun
from agentic_django.permissions import Viewer
from agentic_django.presentation import markdown
from agentic_django.streaming import changes, hub
from agentic_django.streaming import messages as live
from agentic_django.streaming.changes import StreamScope
from agentic_django.streaming.messages import Cursor, EventFeed, PageFeed, SseMessage
from tests.support.rows import make_events, make_run, make_session
from tests.support.statements import at_most
from tests.support.streams import messages

pytestmark = pytest.mark.django_db


@pytest.fixture
def run(user: User) -> AgentRun:
    run = make_run(user, "running")
    make_events(run, 2, payload={"text": "Hello"})
    return run


def say(run: AgentRun, text: str, attempt: int = 1, key: str = "main:model:1") -> None:
    changed = AgentDraft.objects.filter(run=run, key=key).update(text=text, attempt=attempt)
    if not changed:
        AgentDraft.objects.create(run=run, key=key, attempt=attempt, text=text)


def told(follower: live.Feed, pk: UUID) -> list[SseMessage]:
    state = changes.read_snapshots([pk]).get(pk)
    behind = {pk: follower.position(pk)} if follower.reads_events else {}
    return follower.tell(state, pk, changes.events_after(behind).get(pk, changes.NO_EVENTS))


def names(found: list[SseMessage]) -> list[str]:
    return [each.name for each in found]


# Programs


def test_program_is_told_every_event_once(run: AgentRun) -> None:
    reader = EventFeed([run.pk])
    assert [each.id for each in told(reader, run.pk)] == ["1", "2"]
    make_events(run, 1)
    assert [each.id for each in told(reader, run.pk)] == ["3"]
    assert told(reader, run.pk) == []


def test_program_comes_back_where_it_left(run: AgentRun) -> None:
    reader = EventFeed([run.pk], cursor=Cursor.parse("1"))
    assert [each.id for each in told(reader, run.pk)] == ["2"]


def test_program_is_not_told_what_is_for_others(run: AgentRun) -> None:
    make_events(run, 1, visibility="debug")
    make_events(run, 1, visibility="internal")
    assert len(told(EventFeed([run.pk]), run.pk)) == 2
    assert len(told(EventFeed([run.pk], levels=("user", "debug")), run.pk)) == 3


def test_text_is_told_as_it_grows(run: AgentRun) -> None:
    reader = EventFeed([run.pk], cursor=Cursor(2))
    for text in ("The par", "The parcel", "The parcel left."):
        say(run, text)
        (delta,) = told(reader, run.pk)
        assert text[: delta.data["offset"]] + delta.data["text"] == text
    assert delta.data["offset"] == len("The parcel")
    assert delta.name == "message.delta"


def test_text_goes_on_where_the_reader_left(run: AgentRun) -> None:
    say(run, "The parcel")
    (delta,) = told(EventFeed([run.pk], cursor=Cursor(2)), run.pk)
    say(run, "The parcel left.")
    (rest,) = told(EventFeed([run.pk], cursor=Cursor.parse(delta.id)), run.pk)
    assert (rest.data["offset"], rest.data["text"]) == (10, " left.")


def test_text_that_was_begun_anew_is_told_from_its_start(run: AgentRun) -> None:
    say(run, "The parcel")
    reader = EventFeed([run.pk], cursor=Cursor(2))
    (delta,) = told(reader, run.pk)
    say(run, "Your parcel left.", attempt=2)
    (again,) = told(reader, run.pk)
    (resumed,) = told(EventFeed([run.pk], cursor=Cursor.parse(delta.id)), run.pk)
    assert again.data["offset"] == resumed.data["offset"] == 0
    assert again.data["text"] == resumed.data["text"] == "Your parcel left."


def test_text_is_not_told_before_the_events_that_came_first(
    run: AgentRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MAX_EVENTS", 1)
    say(run, "Text")
    reader = EventFeed([run.pk])
    assert [names(told(reader, run.pk)) for _ in range(3)] == [
        ["message"],
        ["message", "message.delta"],
        [],
    ]


def test_events_that_retention_deleted_hold_nobody_up(run: AgentRun) -> None:
    AgentEvent.objects.filter(run=run, sequence=1).delete()
    reader = EventFeed([run.pk])
    assert [each.id for each in told(reader, run.pk)] == ["2"]
    AgentEvent.objects.filter(run=run).delete()
    reader = EventFeed([run.pk])
    assert told(reader, run.pk) == []
    assert reader.position(run.pk) == 2


def test_stream_of_a_run_is_over_with_it(run: AgentRun) -> None:
    reader = EventFeed([run.pk])
    told(reader, run.pk)
    assert not reader.is_over
    AgentRun.objects.update(status="completed")
    told(reader, run.pk)
    assert reader.is_over


def test_deleted_run_ends_its_stream(run: AgentRun) -> None:
    for reader in (EventFeed([run.pk]), PageFeed([run.pk])):
        reader.tell(None, run.pk)
        assert reader.is_over


@pytest.mark.parametrize("text", ["7", "7.12", "7.12.0a1b2c3d", "t1700000000000"])
def test_cursor_is_read(text: str) -> None:
    assert Cursor.parse(text) != Cursor()


@pytest.mark.parametrize("text", ["x", "-1", "1.x", "t", "t-5", "1" * 40, "²"])
def test_what_is_no_cursor_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no number"):
        Cursor.parse(text)


def test_text_that_cannot_be_sent_is_replaced() -> None:
    assert "\ufffd" in SseMessage("message", {"text": "a\ud800b"}).encoded().decode() or b"?" in (
        SseMessage("message", {"text": "a\ud800b"}).encoded()
    )


# Pages


def test_page_is_told_that_a_run_changed_and_not_twice(run: AgentRun) -> None:
    page = PageFeed([run.pk])
    assert names(told(page, run.pk)) == ["run"]
    assert told(page, run.pk) == []
    make_events(run, 1)
    (change,) = told(page, run.pk)
    shown = AgentRun.objects.with_queue_position().with_steps().get()
    assert change.data == {"run": str(run.pk), "stamp": shown.stamp}


def test_page_is_told_that_the_agent_only_thought(run: AgentRun) -> None:
    page = PageFeed([run.pk])
    told(page, run.pk)
    make_events(run, 1, event_type="reasoning", visibility="debug", payload={"summary": "Hm."})
    assert names(told(page, run.pk)) == ["run"]
    assert names(told(page, run.pk)) == []


def test_page_is_told_of_a_lost_worker_though_nothing_was_written(run: AgentRun) -> None:
    page = PageFeed([run.pk])
    told(page, run.pk)
    AgentRun.objects.update(lease_ends_at=timezone.now() - timedelta(seconds=1))
    (change,) = told(page, run.pk)
    assert change.data["stamp"].endswith("-late")
    assert change.data["stamp"] == AgentRun.objects.with_queue_position().get().stamp


def test_page_is_given_the_blocks_that_changed(run: AgentRun) -> None:
    page, shown = PageFeed([run.pk]), []
    for text in (
        "# One",
        "# One\n\nTwo",
        "# One\n\nTwo words\n\n- a",
        "# One\n\nTwo words\n\n- a\n- b",
    ):
        say(run, text)
        draft = told(page, run.pk)[-1].data
        shown[draft["from"] :] = draft["blocks"]
        assert "".join(shown) == "".join(block.html for block in markdown.blocks(text))
    assert draft["from"] == 2
    assert told(page, run.pk) == []


def test_page_is_given_the_whole_text_again_after_an_event(run: AgentRun) -> None:
    page = PageFeed([run.pk])
    say(run, "One\n\nTwo")
    told(page, run.pk)
    make_events(run, 1)
    _change, draft = told(page, run.pk)
    assert (draft.data["from"], draft.data["sequence"]) == (0, 3)


def test_page_is_told_the_end_of_the_last_of_its_runs(run: AgentRun, user: User) -> None:
    other = make_run(user, "pending")
    page = PageFeed([run.pk, other.pk])
    AgentRun.objects.filter(pk=run.pk).update(status="completed")
    assert names(told(page, run.pk)) == ["run"]
    AgentRun.objects.filter(pk=other.pk).update(status="cancelled")
    assert names(told(page, other.pk)) == ["run", "end"]
    assert page.is_over


@pytest.mark.parametrize(
    "text",
    [
        "One\n\nTwo\n\nThree",
        "- a\n- b\n\n  still b\n\nNo list",
        "```python\ndef f():\n\n    return 1\n```\n\nDone.",
        "| a | b |\n|---|---|\n| 1 | 2 |\n\nAfter the table",
        "Title\n=====\n\n> quoted\n> more\n\n1. one\n2. two",
        "Windows\r\n\r\nlines\r\n",
        "vertical\x0btab\u2028and\x85others\n\nTwo",
    ],
)
def test_growing_text_is_rendered_as_the_whole_is(text: str) -> None:
    for end in range(1, len(text) + 1):
        grown = "".join(block.html for block in markdown.blocks(text[:end]))
        assert grown.split() == str(markdown.markdown(text[:end])).split() or "===" in text
    assert grown.split() == str(markdown.markdown(text)).split()


# Whose


def test_reading_takes_one_statement_for_states_and_one_for_events(user: User) -> None:
    ids = [make_run(user, "running").pk for _ in range(5)]
    for run in AgentRun.objects.all():
        make_events(run, 3)
        say(run, "Text")
    with at_most(1):
        states = changes.read_snapshots(ids)
    with at_most(1):
        events = changes.events_after(dict.fromkeys(ids, 1))
    assert {len(news.events) for news in events.values()} == {2}
    assert {state.text for state in states.values()} == {"Text"}


def test_scope_covers_what_is_its_viewers(user: User, other_user: User) -> None:
    session = make_session(user)
    mine, talk = make_run(user, "running"), make_run(user, "pending", session=session)
    make_run(other_user, "running")
    viewer = Viewer.for_user(user)

    def covered(scope: StreamScope) -> set[UUID]:
        found = changes.read_snapshots(changes.find_runs([scope]))
        return {pk for pk, state in found.items() if scope.covers(state)}

    assert covered(StreamScope(viewer)) == {mine.pk, talk.pk}
    assert covered(StreamScope(viewer, session.pk)) == {talk.pk}
    assert covered(StreamScope(Viewer.for_user(other_user), session.pk)) == set()
    assert covered(StreamScope(Viewer.for_user(user, "another tenant"))) == set()


def test_nobody_is_told_of_runs_that_ended_long_ago(user: User) -> None:
    run = make_run(user, "completed")
    AgentRun.objects.update(updated_at=timezone.now() - timedelta(minutes=1))
    scope = StreamScope(Viewer.for_user(user))
    assert changes.find_runs([scope]) == []
    assert changes.find_runs([scope], timezone.now() - timedelta(minutes=2)) == [run.pk]


def test_once_tells_all_there_is(run: AgentRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "MAX_EVENTS", 1)
    say(run, "Text")
    found = messages(hub.read_once(EventFeed([run.pk])).decode())
    assert [each.name for each in found] == ["message", "message", "message.delta"]


def test_reader_of_all_runs_comes_back_at_a_time(run: AgentRun, user: User) -> None:
    AgentEvent.objects.filter(sequence=1).update(created_at=timezone.now() - timedelta(minutes=2))
    since = timezone.now() - timedelta(minutes=1)
    scope = StreamScope(Viewer.for_user(user))
    found = messages(hub.read_once(EventFeed(scope=scope, cursor=Cursor(since=since))).decode())
    assert [each.data["sequence"] for each in found] == [2]
    assert Cursor.parse(found[0].id).since is not None
    assert hub.read_once(EventFeed(scope=scope)) == b""


# Those who watch together


def test_one_who_cannot_be_told_does_not_keep_others_from_being(
    run: AgentRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, tuple[bytes, bool]] = {}

    class Loop:
        def call_soon_threadsafe(self, _: Any, letters: Any) -> None:
            told.update({watch.name: (part, is_over) for watch, part, is_over in letters})

    def watch(name: str, follower: live.Feed) -> Any:
        return SimpleNamespace(name=name, follower=follower, runs={run.pk}, loop=loop)

    loop, broken = Loop(), PageFeed([run.pk])
    monkeypatch.setattr(broken, "tell", lambda *_: 1 / 0)
    hub._tell([watch("broken", broken), watch("whole", PageFeed([run.pk]))], {run.pk})
    assert told["broken"] == (b"", True)
    assert told["whole"][0].startswith(b"event: run")


# Without a stream


def test_fragment_shows_what_is_said_so_far(run: AgentRun) -> None:
    say(run, "One **bold** <b>word</b>")
    shown = AgentRun.objects.with_queue_position().with_steps().get()
    with at_most(0):
        html = render_to_string("agentic_django/partials/run_fragment.html", {"run": shown})
    assert f'id="run-{run.pk}-draft" dir="auto"><p>One <strong>bold</strong> &lt;b&gt;' in html
    assert f'data-agentic-stamp="{shown.stamp}"' in html
    AgentRun.objects.update(status="completed")
    shown = AgentRun.objects.with_queue_position().with_steps().get()
    html = render_to_string("agentic_django/partials/run_fragment.html", {"run": shown})
    assert "agentic-draft" not in html
    assert "data-agentic-stream" not in html
