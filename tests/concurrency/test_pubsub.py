"""Processes tell each other of news, and are none the worse if they cannot."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pytest
from django.db import connection, transaction

from agentic_django.concurrency import pubsub
from agentic_django.concurrency.process_state import process
from agentic_django.engine import events, fenced_writes
from agentic_django.models import AgentRun
from tests.support.processes import Project, wait_until
from tests.support.rows import make_run
from tests.support.servers import Valkey


class Ear:
    """Hears what is told, from now on."""

    def __init__(self) -> None:
        self.heard: list[set[str]] = []
        self.listener = pubsub.Subscriber(self.heard.append)

    @property
    def ids(self) -> set[str]:
        return {each for ids in self.heard for each in ids}


@pytest.fixture
def ear() -> Iterator[Any]:
    """Make an ear; it is told apart from the settings of its moment."""
    ears: list[Ear] = []

    def make() -> Ear:
        ears.append(Ear())
        return ears[-1]

    yield make
    for each in ears:
        each.listener.stop()


@pytest.fixture
def over_redis(settings: Any, valkey: Valkey) -> Valkey:
    settings.AGENTIC_DJANGO_REDIS_URL = f"redis://127.0.0.1:{valkey.port}/3"
    return valkey


def test_way_is_chosen_by_what_is_there(settings: Any) -> None:
    vendor = {"postgresql": "postgres"}.get(connection.vendor, "poll")
    assert pubsub.transport() == vendor
    settings.AGENTIC_DJANGO_REDIS_URL = "redis://127.0.0.1"
    assert pubsub.transport() == "redis"
    settings.AGENTIC_DJANGO_WAKEUP = "poll"
    assert pubsub.transport() == "poll"


def test_what_is_told_over_postgresql_is_heard(in_project: Project, ear: Any) -> None:
    each = ear()
    wait_until(lambda: each.listener.is_healthy)
    ids = {str(uuid.uuid4()) for _ in range(500)}
    for told in ids:
        pubsub.publish(told)
    wait_until(lambda: each.ids >= ids)
    assert len(each.heard) < 50  # Not each by itself.


def test_what_is_told_over_redis_is_heard(over_redis: Valkey, ear: Any) -> None:
    each = ear()
    wait_until(lambda: each.listener.is_healthy)
    pubsub.publish("a-run")
    wait_until(lambda: "a-run" in each.ids)


def test_event_is_told_after_its_commit_and_not_without(in_project: Project, ear: Any) -> None:
    each = ear()
    wait_until(lambda: each.listener.is_healthy)
    run, undone = (make_run(None, "running") for _ in range(2))
    with suppress(ZeroDivisionError), transaction.atomic():
        fenced_writes.update_held(undone, [events.new_event("message", text="No")])
        raise ZeroDivisionError
    with transaction.atomic():
        fenced_writes.update_held(run, [events.new_event("message", text="Yes")])
        assert not process.get(pubsub.Publisher)._ids
    wait_until(lambda: str(run.pk) in each.ids)
    assert str(undone.pk) not in each.ids


def test_nothing_is_sent_where_all_poll(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.AGENTIC_DJANGO_WAKEUP = "poll"
    monkeypatch.setattr(pubsub.Publisher, "add", lambda *_: pytest.fail("It was told."))
    pubsub.publish("a-run")


def test_line_that_swallows_words_is_not_trusted(
    over_redis: Valkey, ear: Any, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    monkeypatch.setattr(pubsub, "_TEST_SECONDS", 0.3)
    monkeypatch.setattr(pubsub._Redis, "send", lambda *_: None)  # As a pooler would.
    with caplog.at_level(logging.WARNING):
        each = ear()
        wait_until(lambda: "polling" in caplog.text)
    assert not each.listener.is_healthy


def test_lost_server_is_told_of_once_and_heard_again(
    settings: Any, own_valkey: Valkey, ear: Any, caplog: Any
) -> None:
    settings.AGENTIC_DJANGO_REDIS_URL = f"redis://127.0.0.1:{own_valkey.port}"
    each = ear()
    wait_until(lambda: each.listener.is_healthy)
    own_valkey.kill()
    wait_until(lambda: not each.listener.is_healthy)
    pubsub.publish("lost")  # Raises nothing; who reads looks by itself.
    own_valkey.start()
    wait_until(lambda: each.listener.is_healthy, timeout=30)
    pubsub.publish("found")
    wait_until(lambda: "found" in each.ids)
    assert "lost" not in each.ids


@pytest.mark.django_db
def test_run_whose_news_nobody_is_told_of_is_none_the_worse(settings: Any) -> None:
    settings.AGENTIC_DJANGO_REDIS_URL = "redis://127.0.0.1:1"
    run = make_run(None, "running")
    fenced_writes.update_held(run, [events.new_event("message", text="Yes")])
    pubsub.publish(run.pk)
    assert AgentRun.objects.get().event_count == 1
