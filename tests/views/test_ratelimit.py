"""The rate limit counts the runs of each user, exactly, by the database's clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.cache import cache
from django.db import connection, transaction
from django.test import Client

from agentic_django.exceptions import RateLimited
from agentic_django.models import RateWindow
from agentic_django.permissions import Viewer
from agentic_django.views import ratelimit
from tests.support.statements import statements

ADA, BOB = Viewer("user:1"), Viewer("user:2")


@pytest.fixture
def rate(settings: Any) -> None:
    settings.AGENTIC_DJANGO_RATE_LIMIT = "3/d"


def consume(viewer: Viewer = ADA) -> None:
    with transaction.atomic():
        ratelimit.consume(viewer)


@pytest.mark.django_db
def test_the_number_of_runs_in_the_rate_is_accepted(rate: None) -> None:
    for _ in range(3):
        consume()
    with pytest.raises(RateLimited) as refused:
        consume()
    assert 0 < refused.value.retry_after <= 86400
    assert str(refused.value.retry_after) in str(refused.value)
    assert RateWindow.objects.get().count == 3


@pytest.mark.django_db
def test_users_and_tenants_are_counted_separately(rate: None) -> None:
    for _ in range(3):
        consume()
    consume(BOB)
    consume(Viewer("user:1", tenant="other"))
    assert RateWindow.objects.count() == 3


@pytest.mark.django_db
def test_the_next_window_starts_at_zero(rate: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratelimit, "_now", lambda: 86_399)
    for _ in range(3):
        consume()
    with pytest.raises(RateLimited) as refused:
        consume()
    assert refused.value.retry_after == 1
    monkeypatch.setattr(ratelimit, "_now", lambda: 86_400)
    consume()
    counts = RateWindow.objects.order_by("starts_at").values_list("starts_at", "count")
    assert list(counts) == [(0, 3), (86_400, 1)]


@pytest.mark.django_db
def test_a_rolled_back_transaction_is_not_counted(rate: None) -> None:
    with transaction.atomic():
        ratelimit.consume(ADA)
        transaction.set_rollback(True)
    assert not RateWindow.objects.exists()


@pytest.mark.django_db
def test_no_rate_limit_needs_no_statement(settings: Any) -> None:
    settings.AGENTIC_DJANGO_RATE_LIMIT = None
    with statements() as found:
        consume()
    assert found == []


@pytest.mark.django_db
def test_counting_in_an_existing_window_needs_two_statements(rate: None) -> None:
    consume()
    with statements() as found:
        consume()
    assert len(found) == 2


@pytest.mark.django_db
def test_the_clock_is_the_databases_clock() -> None:
    assert abs(ratelimit._now() - time.time()) < 5


@pytest.mark.django_db(transaction=True)
def test_the_rate_is_exact_with_many_threads(settings: Any) -> None:
    settings.AGENTIC_DJANGO_RATE_LIMIT = "5/d"
    outcomes: list[str] = []
    start = threading.Barrier(8)

    def submit() -> None:
        start.wait()
        try:
            consume()
            outcomes.append("accepted")
        except RateLimited:
            outcomes.append("refused")
        finally:
            connection.close()

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["accepted"] * 5 + ["refused"] * 3
    assert RateWindow.objects.get().count == 5


def test_the_error_of_a_refused_user_says_when_to_retry(user: User, rate: None) -> None:
    viewer = Viewer.for_user(user)
    for _ in range(3):
        consume(viewer)
    with pytest.raises(RateLimited, match=r"^You sent too many requests\."):
        consume(viewer)


# Refused requests


CREATE = "/agents/runs/"


@pytest.fixture
def refused_rate(settings: Any) -> Iterator[None]:
    settings.AGENTIC_DJANGO_REFUSED_RATE_LIMIT = "3/d"
    cache.clear()
    yield
    cache.clear()


@pytest.mark.django_db(transaction=True)
def test_refused_requests_are_limited_before_their_body_is_parsed(
    client: Client, other_client: Client, refused_rate: None, settings: Any
) -> None:
    settings.AGENTIC_DJANGO_MAX_INPUT_BYTES = 100
    bodies = ["{", '{"input": 5}', "x" * 101]
    for body, status in zip(bodies, (400, 400, 413), strict=True):
        response = client.post(CREATE, body, content_type="application/json")
        assert response.status_code == status
    response = client.post(CREATE, "{", content_type="application/json")
    assert response.status_code == 429
    assert response.json()["code"] == "rate_limited"
    assert 0 < int(response.headers["Retry-After"]) <= 86_400
    assert not RateWindow.objects.exists()
    assert client.get("/agents/sessions/").status_code == 200
    assert other_client.post(CREATE, {"input": "Hi"}).status_code == 201


@pytest.mark.django_db(transaction=True)
def test_accepted_requests_are_not_counted_as_refused(client: Client, refused_rate: None) -> None:
    for _ in range(5):
        assert client.post(CREATE, {"input": "Hi"}).status_code == 201


@pytest.mark.django_db
@pytest.mark.parametrize(
    "backend",
    [
        "django.core.cache.backends.dummy.DummyCache",
        "django.core.cache.backends.redis.RedisCache",
    ],
)
def test_a_cache_that_fails_refuses_no_request(client: Client, settings: Any, backend: str) -> None:
    settings.AGENTIC_DJANGO_REFUSED_RATE_LIMIT = "1/d"
    settings.CACHES = {"default": {"BACKEND": backend, "LOCATION": "redis://127.0.0.1:1"}}
    for _ in range(3):
        assert client.post(CREATE, "{", content_type="application/json").status_code == 400
