"""Messages of a stream: every event once, and partial messages as they grow."""

from __future__ import annotations

import re
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
from agentic_django.presentation import growing_text, markdown
from agentic_django.streaming import changes, hub
from agentic_django.streaming.changes import StreamScope
from agentic_django.streaming.cursors import Cursor
from agentic_django.streaming.sse_messages import EventFeed, Feed, PageFeed, SseMessage
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


def received(feed: Feed, pk: UUID) -> list[SseMessage]:
    snapshot = changes.read_snapshots([pk]).get(pk)
    cursors = {pk: feed.last_sequence(pk)} if feed.reads_events else {}
    batch = changes.read_event_batches(cursors).get(pk, changes.NO_EVENTS)
    return feed.next_messages(pk, snapshot, batch)


def names(found: list[SseMessage]) -> list[str]:
    return [each.name for each in found]


# Programs


def test_program_receives_every_event_once(run: AgentRun) -> None:
    reader = EventFeed([run.pk])
    assert [each.id for each in received(reader, run.pk)] == ["1", "2"]
    make_events(run, 1)
    assert [each.id for each in received(reader, run.pk)] == ["3"]
    assert received(reader, run.pk) == []


def test_program_resumes_at_its_cursor(run: AgentRun) -> None:
    reader = EventFeed([run.pk], cursor=Cursor.parse("1"))
    assert [each.id for each in received(reader, run.pk)] == ["2"]


def test_program_receives_only_events_of_its_levels(run: AgentRun) -> None:
    make_events(run, 1, visibility="debug")
    make_events(run, 1, visibility="internal")
    assert len(received(EventFeed([run.pk]), run.pk)) == 2
    assert len(received(EventFeed([run.pk], levels=("user", "debug")), run.pk)) == 3


def test_partial_message_is_sent_as_it_grows(run: AgentRun) -> None:
    reader = EventFeed([run.pk], cursor=Cursor(2))
    for text in ("The par", "The parcel", "The parcel left."):
        say(run, text)
        (delta,) = received(reader, run.pk)
        assert text[: delta.data["offset"]] + delta.data["text"] == text
    assert delta.data["offset"] == len("The parcel")
    assert delta.name == "message.delta"


def test_partial_message_resumes_at_the_cursor(run: AgentRun) -> None:
    say(run, "The parcel")
    (delta,) = received(EventFeed([run.pk], cursor=Cursor(2)), run.pk)
    say(run, "The parcel left.")
    (rest,) = received(EventFeed([run.pk], cursor=Cursor.parse(delta.id)), run.pk)
    assert (rest.data["offset"], rest.data["text"]) == (10, " left.")


def test_partial_message_of_a_new_attempt_is_sent_from_its_start(run: AgentRun) -> None:
    say(run, "The parcel")
    reader = EventFeed([run.pk], cursor=Cursor(2))
    (delta,) = received(reader, run.pk)
    say(run, "Your parcel left.", attempt=2)
    (again,) = received(reader, run.pk)
    (resumed,) = received(EventFeed([run.pk], cursor=Cursor.parse(delta.id)), run.pk)
    assert again.data["offset"] == resumed.data["offset"] == 0
    assert again.data["text"] == resumed.data["text"] == "Your parcel left."


def test_partial_message_is_sent_after_earlier_events(
    run: AgentRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(changes, "MAX_EVENTS", 1)
    say(run, "Text")
    reader = EventFeed([run.pk])
    assert [names(received(reader, run.pk)) for _ in range(3)] == [
        ["message"],
        ["message", "message.delta"],
        [],
    ]


def test_deleted_events_do_not_block_a_stream(run: AgentRun) -> None:
    AgentEvent.objects.filter(run=run, sequence=1).delete()
    reader = EventFeed([run.pk])
    assert [each.id for each in received(reader, run.pk)] == ["2"]
    AgentEvent.objects.filter(run=run).delete()
    reader = EventFeed([run.pk])
    assert received(reader, run.pk) == []
    assert reader.last_sequence(run.pk) == 2


def test_stream_of_a_run_ends_with_the_run(run: AgentRun) -> None:
    reader = EventFeed([run.pk])
    received(reader, run.pk)
    assert not reader.is_finished
    AgentRun.objects.update(status="completed")
    received(reader, run.pk)
    assert reader.is_finished


def test_deleted_run_ends_its_stream(run: AgentRun) -> None:
    for reader in (EventFeed([run.pk]), PageFeed([run.pk])):
        reader.next_messages(run.pk, None)
        assert reader.is_finished


@pytest.mark.parametrize("text", ["7", "7.12", "7.12.0a1b2c3d", "t1700000000000"])
def test_cursor_is_parsed(text: str) -> None:
    assert Cursor.parse(text) != Cursor()


@pytest.mark.parametrize("text", ["x", "-1", "1.x", "t", "t-5", "1" * 40, "²"])
def test_invalid_cursor_is_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="not a number"):
        Cursor.parse(text)


def test_lone_surrogate_is_replaced_before_sending() -> None:
    encoded = SseMessage("message", {"text": "a\ud800b"}).encoded().decode()
    assert "a?b" in encoded


# Pages


def test_page_receives_each_change_of_a_run_once(run: AgentRun) -> None:
    page = PageFeed([run.pk])
    assert names(received(page, run.pk)) == ["run"]
    assert received(page, run.pk) == []
    make_events(run, 1)
    (change,) = received(page, run.pk)
    shown = AgentRun.objects.with_queue_position().with_steps().get()
    assert change.data == {"run": str(run.pk), "stamp": shown.stamp}


def test_page_receives_a_change_without_visible_events(run: AgentRun) -> None:
    page = PageFeed([run.pk])
    received(page, run.pk)
    make_events(run, 1, event_type="reasoning", visibility="debug", payload={"summary": "Hm."})
    assert names(received(page, run.pk)) == ["run"]
    assert names(received(page, run.pk)) == []


def test_page_receives_that_a_run_is_orphaned_without_a_write(run: AgentRun) -> None:
    page = PageFeed([run.pk])
    received(page, run.pk)
    AgentRun.objects.update(lease_ends_at=timezone.now() - timedelta(seconds=1))
    (change,) = received(page, run.pk)
    assert change.data["stamp"].endswith("-late")
    assert change.data["stamp"] == AgentRun.objects.with_queue_position().get().stamp


def test_page_receives_only_changed_blocks(run: AgentRun) -> None:
    page, shown = PageFeed([run.pk]), []
    for text in (
        "# One",
        "# One\n\nTwo",
        "# One\n\nTwo words\n\n- a",
        "# One\n\nTwo words\n\n- a\n- b",
    ):
        say(run, text)
        draft = received(page, run.pk)[-1].data
        shown[draft["from"] :] = draft["blocks"]
        assert "".join(shown) == "".join(block.html for block in growing_text.blocks(text))
    assert draft["from"] == 2
    assert received(page, run.pk) == []


def test_page_receives_the_whole_text_after_an_event(run: AgentRun) -> None:
    page = PageFeed([run.pk])
    say(run, "One\n\nTwo")
    received(page, run.pk)
    make_events(run, 1)
    _change, draft = received(page, run.pk)
    assert (draft.data["from"], draft.data["sequence"]) == (0, 3)


def test_page_receives_the_end_after_its_last_run(run: AgentRun, user: User) -> None:
    other = make_run(user, "pending")
    page = PageFeed([run.pk, other.pk])
    AgentRun.objects.filter(pk=run.pk).update(status="completed")
    assert names(received(page, run.pk)) == ["run"]
    AgentRun.objects.filter(pk=other.pk).update(status="cancelled")
    assert names(received(page, other.pk)) == ["run", "end"]
    assert page.is_finished


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
def test_growing_text_renders_like_the_whole_text(text: str) -> None:
    for end in range(1, len(text) + 1):
        grown = "".join(block.html for block in growing_text.blocks(text[:end]))
        whole = markdown.render(text[:end])
        assert without_colour(grown) == without_colour(whole) or "===" in text
    assert grown.split() == str(markdown.markdown(text)).split()


def without_colour(html: str) -> list[str]:
    """Return the words of HTML without the colours of code, which growing code has not."""
    return re.sub(r"</?span[^>]*>", "", html).split()


# Scopes


def test_snapshots_take_one_statement_and_events_another(user: User) -> None:
    ids = [make_run(user, "running").pk for _ in range(5)]
    for run in AgentRun.objects.all():
        make_events(run, 3)
        say(run, "Text")
    with at_most(1):
        snapshots = changes.read_snapshots(ids)
    with at_most(1):
        events = changes.read_event_batches(dict.fromkeys(ids, 1))
    assert {len(batch.events) for batch in events.values()} == {2}
    assert {snapshot.text for snapshot in snapshots.values()} == {"Text"}


def test_scope_covers_runs_of_its_viewer_only(user: User, other_user: User) -> None:
    session = make_session(user)
    mine, talk = make_run(user, "running"), make_run(user, "pending", session=session)
    make_run(other_user, "running")
    viewer = Viewer.for_user(user)

    def covered(scope: StreamScope) -> set[UUID]:
        found = changes.read_snapshots(changes.find_run_ids([scope]))
        return {pk for pk, snapshot in found.items() if scope.covers(snapshot)}

    assert covered(StreamScope(viewer)) == {mine.pk, talk.pk}
    assert covered(StreamScope(viewer, session.pk)) == {talk.pk}
    assert covered(StreamScope(Viewer.for_user(other_user), session.pk)) == set()
    assert covered(StreamScope(Viewer.for_user(user, "another tenant"))) == set()


def test_runs_that_ended_long_ago_are_not_read(user: User) -> None:
    run = make_run(user, "completed")
    AgentRun.objects.update(updated_at=timezone.now() - timedelta(minutes=1))
    scope = StreamScope(Viewer.for_user(user))
    assert changes.find_run_ids([scope]) == []
    assert changes.find_run_ids([scope], timezone.now() - timedelta(minutes=2)) == [run.pk]


def test_read_once_returns_all_messages(run: AgentRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "MAX_EVENTS", 1)
    say(run, "Text")
    found = messages(hub.read_once(EventFeed([run.pk])).decode())
    assert [each.name for each in found] == ["message", "message", "message.delta"]


def test_reader_of_all_runs_resumes_at_a_time(run: AgentRun, user: User) -> None:
    AgentEvent.objects.filter(sequence=1).update(created_at=timezone.now() - timedelta(minutes=2))
    since = timezone.now() - timedelta(minutes=1)
    scope = StreamScope(Viewer.for_user(user))
    found = messages(hub.read_once(EventFeed(scope=scope, cursor=Cursor(since=since))).decode())
    assert [each.data["sequence"] for each in found] == [2]
    assert Cursor.parse(found[0].id).since is not None
    assert hub.read_once(EventFeed(scope=scope)) == b""


# Several subscriptions


def test_broken_feed_does_not_block_other_streams(
    run: AgentRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: dict[str, tuple[bytes, bool]] = {}

    class Loop:
        def call_soon_threadsafe(self, _: Any, deliveries: Any) -> None:
            sent.update(
                {each.name: (chunk, is_finished) for each, chunk, is_finished in deliveries}
            )

    def subscription(name: str, feed: Feed) -> Any:
        return SimpleNamespace(name=name, feed=feed, run_ids={run.pk}, loop=loop)

    loop, broken = Loop(), PageFeed([run.pk])
    monkeypatch.setattr(broken, "next_messages", lambda *_: 1 / 0)
    hub._publish(
        [subscription("broken", broken), subscription("whole", PageFeed([run.pk]))], {run.pk}
    )
    assert sent["broken"] == (b"", True)
    assert sent["whole"][0].startswith(b"event: run")


# Without a stream


def test_fragment_shows_the_partial_message(run: AgentRun) -> None:
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
