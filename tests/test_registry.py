"""Agents are found by key, wherever they were registered, and errors help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.test import override_settings

from agentic_django import registry
from agentic_django.exceptions import AgenticError, BadSetting, UnknownAgent

calls: list[str] = []


def support() -> str:
    return "support"


def first() -> dict[str, Callable[[], Any]]:
    calls.append("first")
    return {"support": support, "sales": dict}


def second() -> dict[str, Callable[[], Any]]:
    return {"research": dict}


def overlapping() -> dict[str, Callable[[], Any]]:
    return {"support": list}


def not_a_dict() -> list[str]:
    return ["support"]


def not_callable() -> dict[str, Any]:
    return {"support": "x"}


@pytest.fixture(autouse=True)
def fresh(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_registry", registry._Registry())
    settings.AGENTIC_DJANGO_AGENT_REGISTRY = "tests.test_registry.first"
    calls.clear()


def test_a_registered_agent_is_found_by_its_key() -> None:
    assert registry.get("support") is support


def test_keys_are_sorted() -> None:
    registry.register("audit", dict)
    assert registry.keys() == ["audit", "sales", "support"]


@pytest.mark.parametrize("path", ["tests.test_registry.first", "tests.test_registry:first"])
def test_a_path_may_have_a_dot_or_a_colon(settings: Any, path: str) -> None:
    settings.AGENTIC_DJANGO_AGENT_REGISTRY = path
    assert registry.get("support") is support


@pytest.mark.parametrize("kind", [list, tuple])
def test_several_registries_are_one(settings: Any, kind: Any) -> None:
    paths = ["tests.test_registry.first", "tests.test_registry.second"]
    settings.AGENTIC_DJANGO_AGENT_REGISTRY = kind(paths)
    assert registry.keys() == ["research", "sales", "support"]


def test_the_setting_is_asked_once() -> None:
    registry.keys()
    registry.get("support")
    assert calls == ["first"]


def test_the_setting_is_asked_again_when_it_changes() -> None:
    assert registry.keys() == ["sales", "support"]
    with override_settings(AGENTIC_DJANGO_AGENT_REGISTRY="tests.test_registry.second"):
        assert registry.keys() == ["research"]
    assert registry.keys() == ["sales", "support"]


def test_what_code_registered_outlives_a_change_of_the_setting() -> None:
    registry.register("audit", dict)
    with override_settings(AGENTIC_DJANGO_AGENT_REGISTRY=None):
        assert registry.keys() == ["audit"]


def test_an_unknown_key_suggests_the_most_similar_key() -> None:
    with pytest.raises(UnknownAgent, match=r"Unknown agent 'suport'\. Did you mean 'support'\?"):
        registry.get("suport")


def test_a_key_that_resembles_none_lists_the_registered_keys() -> None:
    with pytest.raises(UnknownAgent, match=r"Unknown agent 'xyzzy'\. Known: sales, support\."):
        registry.get("xyzzy")


def test_the_error_of_an_empty_registry_lists_none(settings: Any) -> None:
    settings.AGENTIC_DJANGO_AGENT_REGISTRY = None
    with pytest.raises(UnknownAgent, match="Known: none"):
        registry.get("support")


def test_an_unknown_key_is_a_lookup_error_and_one_of_ours() -> None:
    with pytest.raises(LookupError):
        registry.get("xyzzy")
    assert issubclass(UnknownAgent, AgenticError)


def test_of_two_registrations_the_first_stays() -> None:
    registry.register("audit", dict)
    registry.register("audit", list)
    assert registry.get("audit") is dict
    assert registry.duplicates() == ["audit"]


def test_of_two_registries_the_first_stays(settings: Any) -> None:
    paths = ["tests.test_registry.first", "tests.test_registry.overlapping"]
    settings.AGENTIC_DJANGO_AGENT_REGISTRY = paths
    assert registry.duplicates() == ["support"]
    assert registry.get("support") is support


def test_a_key_that_code_registers_after_the_setting_was_asked_is_told() -> None:
    assert registry.get("support") is support
    registry.register("support", dict)
    assert registry.duplicates() == ["support"]


def test_a_doubled_key_of_code_is_still_told_after_a_change_of_the_setting() -> None:
    registry.register("audit", dict)
    registry.register("audit", list)
    with override_settings(AGENTIC_DJANGO_AGENT_REGISTRY="tests.test_registry.second"):
        assert registry.duplicates() == ["audit"]


def test_there_are_no_duplicates_as_a_rule() -> None:
    assert registry.duplicates() == []


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("tests.nowhere.agents", "Cannot import"),
        ("tests.test_registry.calls", "is not callable"),
        ("tests.test_registry.not_a_dict", "returned list, not a dict of factories"),
        ("tests.test_registry.not_callable", "the factory of 'support' is not callable"),
    ],
)
def test_a_registry_that_cannot_be_used_says_why(settings: Any, path: str, reason: str) -> None:
    settings.AGENTIC_DJANGO_AGENT_REGISTRY = path
    with pytest.raises(BadSetting, match=reason):
        registry.keys()


def test_a_registry_that_failed_is_asked_again(settings: Any) -> None:
    settings.AGENTIC_DJANGO_AGENT_REGISTRY = "tests.test_registry.not_a_dict"
    for _ in range(2):
        with pytest.raises(BadSetting):
            registry.get("support")


def test_no_factory_is_called_by_looking_it_up() -> None:
    registry.register("explosive", lambda: 1 / 0)
    assert callable(registry.get("explosive"))


@pytest.mark.parametrize("given", [None, "shop.agents.support", {}])
def test_an_object_that_is_not_a_factory_is_refused_when_it_is_registered(given: Any) -> None:
    with pytest.raises(BadSetting, match=r"factory of 'audit'.*Register a "):
        registry.register("audit", given)
    assert registry.keys() == ["sales", "support"]


def returns_nothing() -> None:
    pass


def test_the_error_for_a_registry_that_returns_none_mentions_the_return_statement(
    settings: Any,
) -> None:
    settings.AGENTIC_DJANGO_AGENT_REGISTRY = "tests.test_registry.returns_nothing"
    with pytest.raises(BadSetting, match="lack a return statement"):
        registry.keys()
