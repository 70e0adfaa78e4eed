"""JSON values, the size of the input, and the options that a client may set."""

from __future__ import annotations

from typing import Any

import pytest
from agents.run_config import DEFAULT_MAX_TURNS

from agentic_django import validation
from agentic_django.exceptions import BadInput, InputTooLarge


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ({"a": ["\x00"]}, r"a\[0\]: The character U\+0000 is not allowed"),
        ({"a": {"b": "\udfff"}}, r"a\.b: Lone surrogates are not allowed"),
        ({"a": float("nan")}, r"a: JSON does not allow NaN"),
        ({"a": {"\x00": 1}}, r"a: The character U\+0000"),
        ({"\x00": 1}, r"\(field name\): The character U\+0000"),
    ],
)
def test_the_error_names_the_path_of_a_value_that_a_database_cannot_hold(
    value: Any, sentence: str
) -> None:
    with pytest.raises(BadInput, match=f"^{sentence}"):
        validation.check_json(value)


def test_nesting_is_limited() -> None:
    validation.check_json(nested(validation.MAX_DEPTH))
    with pytest.raises(BadInput, match="nested more than 64 levels deep"):
        validation.check_json(nested(validation.MAX_DEPTH + 1))


def nested(depth: int) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value]
    return value


def test_all_unicode_characters_but_null_are_accepted() -> None:
    validation.check_json({"a": "Grüße 👩‍👩‍👧 \u2028 \x7f"})


def test_the_number_of_items_is_limited(settings: Any) -> None:
    settings.AGENTIC_DJANGO_MAX_INPUT_ITEMS = 2
    validation.check_item_count([{}, {}])
    with pytest.raises(InputTooLarge, match=r"input: Too many items: 3\. The limit is 2"):
        validation.check_item_count([{}, {}, {}])


# Options of clients


def test_the_sdks_default_of_max_turns_is_the_expected_one() -> None:
    assert validation.SDK_MAX_TURNS == DEFAULT_MAX_TURNS


@pytest.mark.parametrize("turns", [1, 10])
def test_a_client_may_set_max_turns_up_to_the_sdks_default(turns: int) -> None:
    validation.check_client_options({"max_turns": turns})


@pytest.mark.parametrize("turns", [11, 10**30, None])
def test_a_client_may_not_raise_or_remove_max_turns(turns: Any) -> None:
    with pytest.raises(BadInput, match=r"config\.max_turns"):
        validation.check_client_options({"max_turns": turns})


@pytest.mark.parametrize("turns", [0, -1, True, 2.0, "3"])
def test_max_turns_is_a_positive_integer(turns: Any) -> None:
    with pytest.raises(BadInput, match=r"config\.max_turns"):
        validation.validated_run_options({"max_turns": turns})


def test_the_hosts_default_of_max_turns_is_the_limit_for_clients(settings: Any) -> None:
    settings.AGENTIC_DJANGO_DEFAULT_RUN_OPTIONS = {"max_turns": 20}
    validation.check_client_options({"max_turns": 20})
    with pytest.raises(BadInput, match="from 1 to 20"):
        validation.check_client_options({"max_turns": 21})


def test_a_host_without_max_turns_sets_no_limit_for_clients(settings: Any) -> None:
    settings.AGENTIC_DJANGO_DEFAULT_RUN_OPTIONS = {"max_turns": None}
    validation.check_client_options({"max_turns": 1000})


@pytest.mark.parametrize("name", ["model", "tools", "conversation_id", "run_config", "max_turn"])
def test_a_client_may_not_set_other_options(name: str) -> None:
    with pytest.raises(BadInput) as refused:
        validation.check_client_options({name: "x", "max_turns": 2})
    assert refused.value.errors == {f"config.{name}": "Not allowed. Allowed: max_turns (1 to 10)."}


def test_a_host_may_allow_other_options(settings: Any) -> None:
    settings.AGENTIC_DJANGO_CLIENT_RUN_OPTIONS = ["workflow_name"]
    validation.check_client_options({"workflow_name": "x"})
    with pytest.raises(BadInput, match=r"config\.max_turns: Not allowed. Allowed: workflow_name\."):
        validation.check_client_options({"max_turns": 1})
