"""Templates of the host for one tool or agent, with names that come from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.template import Engine
from django.test import Client
from django.urls import reverse

from agentic_django.presentation import host_templates
from tests.support.rows import make_events, make_run

FOLDER = "agentic_django/partials/tool_calls"


@pytest.fixture
def own(settings: Any, tmp_path: Path) -> Path:
    """A directory of templates in which the host has one for ``find_order``."""
    folder = tmp_path / FOLDER
    folder.mkdir(parents=True)
    (folder / "find_order.html").write_text("Card of find_order")
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    return folder


def names_in_loader_cache() -> set[str]:
    return {
        str(name)
        for loader in Engine.get_default().template_loaders
        for name in getattr(loader, "get_template_cache", {})
    }


def test_template_of_a_tool_is_found(own: Path) -> None:
    assert host_templates.found(FOLDER, "find_order") == f"{FOLDER}/find_order.html"
    assert host_templates.found(FOLDER, "other") == ""


@pytest.mark.parametrize(
    "name",
    [
        "x" * 65,
        "x" * 251,
        "x" * 5_000,
        "../base",
        "a/../../base",
        "",
        "a\0b",
        "\ud800",
        "ä",
        ".env",
    ],
)
def test_name_that_cannot_have_a_template_is_not_looked_up(own: Path, name: str) -> None:
    assert host_templates.found(FOLDER, name) == ""


def test_template_is_looked_up_once(own: Path, settings: Any) -> None:
    assert host_templates.found(FOLDER, "late") == ""
    (own / "late.html").write_text("Late")
    assert host_templates.found(FOLDER, "late") == ""
    settings.DEBUG = True
    assert host_templates.found(FOLDER, "late") == f"{FOLDER}/late.html"


@pytest.mark.django_db
@pytest.mark.parametrize("name", ["x" * 251, "x" * 4_000, "a/b", "\ud800", ""])
def test_tool_name_of_any_length_is_shown(client: Client, user: User, name: str) -> None:
    run = make_run(user, "running")
    called = {"call_id": "c", "tool": name, "arguments": {}}
    make_events(run, 1, event_type="tool.called", payload=called)
    assert client.get(reverse("agents:run-fragment", args=[run.pk])).status_code == 200
    address = reverse("agents:run-detail", args=[run.pk])
    assert client.get(address, headers={"Accept": "text/html"}).status_code == 200


@pytest.mark.django_db
def test_agent_key_of_any_length_is_shown(client: Client, user: User) -> None:
    run = make_run(user, "completed", agent_key="k" * 100, final_output="Answer")
    response = client.get(reverse("agents:run-fragment", args=[run.pk]))
    assert "Answer" in response.text


@pytest.mark.django_db
def test_names_of_tools_and_agents_do_not_fill_the_cache_of_templates(
    client: Client, user: User
) -> None:
    def show(number: int) -> None:
        run = make_run(user, "completed", agent_key=f"agent-{number}", final_output="Answer")
        called = {"call_id": "c", "tool": f"tool_{number}", "arguments": {}}
        make_events(run, 1, event_type="tool.called", payload=called)
        assert client.get(reverse("agents:run-fragment", args=[run.pk])).status_code == 200

    show(0)
    before = names_in_loader_cache()
    for number in range(1, 10):
        show(number)
    assert names_in_loader_cache() == before
