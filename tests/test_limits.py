"""Rate limits, and what input and run options may look like."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from agents.run_config import DEFAULT_MAX_TURNS
from django.contrib.auth.models import User
from django.db import connection, transaction

from agentic_django import validation
from agentic_django.exceptions import BadInput, InputTooLarge, RateLimited
from agentic_django.models import RateWindow
from agentic_django.permissions import Viewer
from agentic_django.views import ratelimit
from tests.support.statements import statements

ADA, BOB = Viewer("user:1"), Viewer("user:2")


@pytest.fixture
def rate(settings: Any) -> None:
    settings.AGENTIC_DJANGO_RATE_LIMIT = "3/d"


def take(viewer: Viewer = ADA) -> None:
    with transaction.atomic():
        ratelimit.consume(viewer)


@pytest.mark.django_db
def test_as_many_runs_as_the_rate_says_are_accepted(rate: None) -> None:
    for _ in range(3):
        take()
    with pytest.raises(RateLimited) as refused:
        take()
    assert 0 < refused.value.retry_after <= 86400
    assert str(refused.value.retry_after) in str(refused.value)
    assert RateWindow.objects.get().count == 3


@pytest.mark.django_db
def test_everybody_has_a_rate_of_their_own(rate: None) -> None:
    for _ in range(3):
        take()
    take(BOB)
    take(Viewer("user:1", tenant="other"))
    assert RateWindow.objects.count() == 3


@pytest.mark.django_db
def test_next_window_starts_at_zero(rate: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ratelimit, "_now", lambda: 86_399)
    for _ in range(3):
        take()
    with pytest.raises(RateLimited) as refused:
        take()
    assert refused.value.retry_after == 1
    monkeypatch.setattr(ratelimit, "_now", lambda: 86_400)
    take()
    counts = RateWindow.objects.order_by("starts_at").values_list("starts_at", "count")
    assert list(counts) == [(0, 3), (86_400, 1)]


@pytest.mark.django_db
def test_refused_transaction_takes_nothing(rate: None) -> None:
    with transaction.atomic():
        ratelimit.consume(ADA)
        transaction.set_rollback(True)
    assert not RateWindow.objects.exists()


@pytest.mark.django_db
def test_no_rate_costs_no_statement(settings: Any) -> None:
    settings.AGENTIC_DJANGO_RATE_LIMIT = None
    with statements() as found:
        take()
    assert found == []


@pytest.mark.django_db
def test_open_window_costs_two_statements(rate: None) -> None:
    take()
    with statements() as found:
        take()
    assert len(found) == 2


@pytest.mark.django_db
def test_clock_is_that_of_the_database() -> None:
    assert abs(ratelimit._now() - time.time()) < 5


@pytest.mark.django_db(transaction=True)
def test_rate_is_exact_with_many_threads_at_once(settings: Any) -> None:
    settings.AGENTIC_DJANGO_RATE_LIMIT = "5/d"
    outcomes: list[str] = []
    start = threading.Barrier(8)

    def submit() -> None:
        start.wait()
        try:
            take()
            outcomes.append("taken")
        except RateLimited:
            outcomes.append("refused")
        finally:
            connection.close()

    threads = [threading.Thread(target=submit) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["refused"] * 3 + ["taken"] * 5
    assert RateWindow.objects.get().count == 5


# Data


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"a": ["\x00"]}, r"a\[0\]: The character U\+0000 is not accepted"),
        ({"a": {"b": "\udfff"}}, r"a\.b: Lone surrogates are not allowed"),
        ({"a": float("nan")}, r"a: JSON does not allow NaN"),
        ({"a": {"\x00": 1}}, r"a: The character U\+0000"),
        ({"\x00": 1}, r"\(a field's name\): The character U\+0000"),
    ],
)
def test_what_no_database_holds_is_named(value: Any, sentence: str) -> None:
    with pytest.raises(BadInput, match=f"^{sentence}"):
        validation.check_json(value)


def test_nesting_is_bounded() -> None:
    validation.check_json(nested(validation.MAX_DEPTH))
    with pytest.raises(BadInput, match="nested more than 64 levels deep"):
        validation.check_json(nested(validation.MAX_DEPTH + 1))


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_text_with_any_real_character_is_accepted() -> None:
    validation.check_json({"a": "Grüße 👩‍👩‍👧 \u2028 \x7f"})


def test_number_of_items_is_bounded(settings: Any) -> None:
    settings.AGENTIC_DJANGO_MAX_INPUT_ITEMS = 2
    validation.check_item_count([{}, {}])
    with pytest.raises(InputTooLarge, match=r"input: Too many items: 3\. The limit is 2"):
        validation.check_item_count([{}, {}, {}])


# Options of clients


def test_sdk_bound_is_still_the_one_we_know() -> None:
    assert validation.SDK_MAX_TURNS == DEFAULT_MAX_TURNS


@pytest.mark.parametrize("turns", [1, 10])
def test_client_may_ask_for_as_many_turns_as_the_sdk_gives(turns: int) -> None:
    assert validation.validated_client_options({"max_turns": turns}) == {"max_turns": turns}


@pytest.mark.parametrize("turns", [0, 11, None, True, 2.0, "3"])
def test_client_may_not_ask_for_more_turns_or_for_nonsense(turns: Any) -> None:
    with pytest.raises(BadInput, match=r"config\.max_turns"):
        validation.validated_client_options({"max_turns": turns})


def test_bound_of_turns_is_the_hosts_own(settings: Any) -> None:
    settings.AGENTIC_DJANGO_DEFAULT_RUN_OPTIONS = {"max_turns": 20}
    assert validation.validated_client_options({"max_turns": 20})
    with pytest.raises(BadInput, match="from 1 to 20"):
        validation.validated_client_options({"max_turns": 21})


def test_host_without_a_bound_sets_none_for_clients(settings: Any) -> None:
    settings.AGENTIC_DJANGO_DEFAULT_RUN_OPTIONS = {"max_turns": None}
    assert validation.validated_client_options({"max_turns": 1000}) == {"max_turns": 1000}


@pytest.mark.parametrize("name", ["model", "tools", "conversation_id", "run_config", "max_turn"])
def test_client_may_set_nothing_else(name: str) -> None:
    with pytest.raises(BadInput) as refused:
        validation.validated_client_options({name: "x", "max_turns": 2})
    assert refused.value.errors == {f"config.{name}": "Not allowed. Allowed: max_turns (1 to 10)."}


def test_host_may_open_other_options_to_clients(settings: Any) -> None:
    settings.AGENTIC_DJANGO_CLIENT_RUN_OPTIONS = ["workflow_name"]
    assert validation.validated_client_options({"workflow_name": "x"}) == {"workflow_name": "x"}
    with pytest.raises(BadInput, match=r"config\.max_turns: Not allowed. Allowed: workflow_name\."):
        validation.validated_client_options({"max_turns": 1})


def test_refused_user_is_told_nothing_of_others(user: User, rate: None) -> None:
    viewer = Viewer.for_user(user)
    for _ in range(3):
        take(viewer)
    with pytest.raises(RateLimited, match=r"^You started too many runs in a short time\."):
        take(viewer)
