"""Processes notify each other of changed and enqueued runs, and work without notifications too."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from django.db import connection, transaction

from agentic_django.concurrency import pubsub, pubsub_transports
from agentic_django.concurrency.process_state import process
from agentic_django.concurrency.pubsub import Topic, publish
from agentic_django.engine import events, fenced_writes
from agentic_django.engine.attempt import Attempt
from agentic_django.exceptions import BadSetting
from agentic_django.models import AgentRun
from tests.support.processes import Project, wait_until
from tests.support.rows import make_run
from tests.support.servers import Valkey


class Receiver:
    """Keeps the values that a subscriber receives."""

    def __init__(self, topic: Topic) -> None:
        self.received: list[set[str]] = []
        self.subscriber = pubsub.Subscriber(topic, self.received.append)
        self.subscriber.start()

    @property
    def values(self) -> set[str]:
        return {each for values in self.received for each in values}

    def wait_until_healthy(self, timeout: float = 10) -> None:
        wait_until(lambda: self.subscriber.is_healthy, timeout=timeout)


@pytest.fixture
def subscribe() -> Iterator[Any]:
    """Subscribe to a topic, with the settings of that moment."""
    receivers: list[Receiver] = []

    def subscribe(topic: Topic = Topic.RUN_CHANGED) -> Receiver:
        receivers.append(Receiver(topic))
        return receivers[-1]

    yield subscribe
    for each in receivers:
        each.subscriber.stop()


@pytest.fixture
def redis_transport(settings: Any, valkey: Valkey) -> None:
    settings.AGENTIC_DJANGO_REDIS_URL = f"redis://127.0.0.1:{valkey.port}/3"


@pytest.fixture(params=["postgres", "redis"])
def any_transport(request: pytest.FixtureRequest) -> None:
    """Use each transport once."""
    request.getfixturevalue("in_project" if request.param == "postgres" else "redis_transport")


def test_the_transport_depends_on_settings_and_database(settings: Any) -> None:
    vendor = {"postgresql": "postgres"}.get(connection.vendor, "poll")
    assert pubsub_transports.transport() == vendor
    settings.AGENTIC_DJANGO_REDIS_URL = "redis://127.0.0.1"
    assert pubsub_transports.transport() == "redis"
    settings.AGENTIC_DJANGO_WAKEUP = "poll"
    assert pubsub_transports.transport() == "poll"


@pytest.mark.usefixtures("any_transport")
def test_a_subscriber_receives_the_values_of_its_topic_only(subscribe: Any) -> None:
    runs, queues = subscribe(), subscribe(Topic.RUN_ENQUEUED)
    runs.wait_until_healthy()
    queues.wait_until_healthy()
    publish(Topic.RUN_CHANGED, "a-run")
    publish(Topic.RUN_ENQUEUED, "a-queue")
    wait_until(lambda: "a-run" in runs.values and "a-queue" in queues.values)
    assert (runs.values, queues.values) == ({"a-run"}, {"a-queue"})


@pytest.mark.usefixtures("any_transport")
def test_messages_at_the_same_moment_are_sent_together(subscribe: Any) -> None:
    receiver = subscribe()
    receiver.wait_until_healthy()
    ids = {str(uuid.uuid4()) for _ in range(500)}
    for each in ids:
        publish(Topic.RUN_CHANGED, each)
    wait_until(lambda: receiver.values >= ids)
    assert len(receiver.received) < 50


@pytest.mark.usefixtures("any_transport")
def test_a_subscriber_receives_an_empty_set_when_it_is_connected(subscribe: Any) -> None:
    receiver = subscribe()
    receiver.wait_until_healthy()
    wait_until(lambda: receiver.received == [set()])


EXITING = """
from agentic_django.concurrency.pubsub import Topic, publish
publish(Topic.RUN_ENQUEUED, "from-a-script")
"""


def test_a_message_of_a_process_that_exits_at_once_arrives(
    in_project: Project, subscribe: Any
) -> None:
    receiver = subscribe(Topic.RUN_ENQUEUED)
    receiver.wait_until_healthy()
    in_project.python(EXITING)
    wait_until(lambda: "from-a-script" in receiver.values)


def test_an_event_is_published_after_its_commit_and_not_after_a_rollback(
    in_project: Project, subscribe: Any
) -> None:
    receiver = subscribe()
    receiver.wait_until_healthy()
    run, undone = (make_run(None, "running") for _ in range(2))
    with suppress(ZeroDivisionError), transaction.atomic():
        fenced_writes.update_run(Attempt(undone), [events.new_event("message", text="No")])
        raise ZeroDivisionError
    with transaction.atomic():
        fenced_writes.update_run(Attempt(run), [events.new_event("message", text="Yes")])
        assert not process.get(pubsub.Publisher)._messages
    wait_until(lambda: str(run.pk) in receiver.values)
    assert str(undone.pk) not in receiver.values


def test_nothing_is_published_where_all_processes_poll(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings.AGENTIC_DJANGO_WAKEUP = "poll"
    monkeypatch.setattr(pubsub.Publisher, "add", lambda *_: pytest.fail("It was published."))
    publish(Topic.RUN_CHANGED, "a-run")


@pytest.mark.usefixtures("redis_transport")
def test_a_transport_that_drops_messages_is_not_healthy(
    subscribe: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pubsub, "_SELF_TEST_SECONDS", 0.3)
    monkeypatch.setattr(
        pubsub_transports.RedisChannel, "send", lambda *_: None
    )  # As a pooler does.
    with caplog.at_level(logging.WARNING):
        receiver = subscribe()
        wait_until(lambda: "Polling" in caplog.text)
    assert not receiver.subscriber.is_healthy
    assert receiver.received == []


def test_a_subscriber_reconnects_to_a_server_that_was_restarted(
    settings: Any, own_valkey: Valkey, subscribe: Any, caplog: pytest.LogCaptureFixture
) -> None:
    settings.AGENTIC_DJANGO_REDIS_URL = f"redis://127.0.0.1:{own_valkey.port}"
    receiver = subscribe()
    receiver.wait_until_healthy()
    own_valkey.kill()
    wait_until(lambda: not receiver.subscriber.is_healthy)
    for n in range(3):
        publish(Topic.RUN_CHANGED, f"lost-{n}")
        wait_until(lambda: not process.get(pubsub.Publisher)._messages)
    own_valkey.start()
    receiver.wait_until_healthy(timeout=30)
    publish(Topic.RUN_CHANGED, "found")
    wait_until(lambda: "found" in receiver.values)
    assert receiver.values == {"found"}
    assert receiver.received.count(set()) == 2
    assert caplog.text.count("Cannot notify other processes") == 1


@pytest.mark.django_db
def test_a_run_whose_change_cannot_be_published_is_written(settings: Any) -> None:
    settings.AGENTIC_DJANGO_REDIS_URL = "redis://127.0.0.1:1"
    run = make_run(None, "running")
    fenced_writes.update_run(Attempt(run), [events.new_event("message", text="Yes")])
    publish(Topic.RUN_CHANGED, run.pk)
    assert AgentRun.objects.get().event_count == 1


@pytest.mark.parametrize(
    ("wakeup", "named"), [("redis", "AGENTIC_DJANGO_REDIS_URL"), ("postgres", "sqlite")]
)
def test_a_transport_that_cannot_work_says_which_setting_is_wrong(
    settings: Any, wakeup: str, named: str
) -> None:
    settings.AGENTIC_DJANGO_WAKEUP = wakeup
    with pytest.raises(BadSetting, match=named):
        pubsub_transports.open_channel()
