"""Settings are typed, have defaults, follow overrides, and are documented."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.test import override_settings
from pydantic import ValidationError

from agentic_django.conf import PREFIX, CleanupPolicy, Rate, Settings, load, settings
from agentic_django.exceptions import BadSetting
from tests.settings import ROOT


def page() -> str:
    return (ROOT / "docs/reference/settings.md").read_text()


def test_the_documentation_lists_each_setting_with_its_default() -> None:
    told = re.findall(rf"^### `({PREFIX}\w+)`\n\nDefault: `(.*)`$", page(), re.MULTILINE)
    made = {name: repr(option.default) for name, option in Settings.options().items()}
    assert dict(told) == made
    assert len(told) == len(made)


def test_the_documentation_lists_the_retention_policy_with_its_defaults() -> None:
    told = re.findall(r"^\| `(\w+)` \| `(.*?)` \|", page(), re.MULTILINE)
    made = {n: repr(f.default) for n, f in CleanupPolicy.model_fields.items()}
    assert dict(told) == made


def test_every_default_is_a_value_that_can_be_used() -> None:
    names = Settings.options()
    with override_settings(**{name: option.default for name, option in names.items()}):
        assert {name: option.problem() for name, option in names.items()} == dict.fromkeys(names)


def test_every_setting_says_what_to_write() -> None:
    assert all(option.hint.endswith(".") for option in Settings.options().values())


def test_a_setting_follows_an_override_and_comes_back() -> None:
    assert settings.MAX_INPUT_ITEMS == 100
    with override_settings(AGENTIC_DJANGO_MAX_INPUT_ITEMS=3):
        assert settings.MAX_INPUT_ITEMS == 3
    assert settings.MAX_INPUT_ITEMS == 100


@pytest.mark.parametrize(
    ("text", "count", "seconds"),
    [("20/m", 20, 60), ("1/s", 1, 1), ("500/h", 500, 3600), ("7/d", 7, 86400)],
)
def test_a_rate_is_a_count_in_a_period(text: str, count: int, seconds: int) -> None:
    assert Rate.parse(text) == Rate(count=count, seconds=seconds)


@pytest.mark.parametrize(
    "text", ["", "20", "20/", "/m", "0/m", "-1/m", "1.5/m", "20/w", "20/min", " 20/m", "20/m\n"]
)
def test_what_is_no_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="'20/m'"):
        Rate.parse(text)


def test_no_rate_is_no_limit(settings: Any) -> None:
    from agentic_django.conf import settings as ours

    settings.AGENTIC_DJANGO_RATE_LIMIT = None
    assert ours.rate is None
    settings.AGENTIC_DJANGO_RATE_LIMIT = "2/h"
    assert ours.rate == Rate(count=2, seconds=3600)


def test_the_policy_keeps_everything_unless_told_otherwise() -> None:
    policy = settings.cleanup
    assert (policy.events_days, policy.runs_days, policy.sessions_days) == (None, None, None)
    assert policy.sessions_require_empty


def test_a_policy_cannot_name_unfinished_runs() -> None:
    with pytest.raises(ValidationError, match="runs_statuses"):
        CleanupPolicy.model_validate({"runs_statuses": ["completed", "running"]})


def test_a_hook_may_be_the_callable_itself() -> None:
    assert load(len) is len


@pytest.mark.parametrize("path", ["tests.support.agents.echo", "tests.support.agents:echo"])
def test_a_hook_may_be_a_path_with_a_dot_or_a_colon(path: str) -> None:
    from tests.support.agents import echo

    assert load(path) is echo


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("tests.nothing.here", r"Cannot import 'tests\.nothing\.here'"),
        ("tests.support.agents.nothing", r"Cannot import 'tests\.support\.agents\.nothing'"),
        ("echo", "Cannot import 'echo'"),
        ("tests.support.agents.USAGE", "is not callable"),
    ],
)
def test_a_hook_that_is_not_there_is_a_bad_setting(path: str, reason: str) -> None:
    with pytest.raises(BadSetting, match=reason):
        load(path)
