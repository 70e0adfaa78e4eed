"""Malformed input items are refused before a run exists, by the SDK's own types."""

from __future__ import annotations

from typing import Any

import pytest
from django.contrib.auth.models import User

from agentic_django import services
from agentic_django.exceptions import BadInput
from agentic_django.models import AgentRun, AgentSession

pytestmark = pytest.mark.django_db

HI = {"role": "user", "content": "Hi"}
CALL = {"type": "function_call", "call_id": "c", "name": "find", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "found"}


@pytest.fixture(autouse=True)
def idle(settings: Any) -> None:
    """Nobody works: an accepted run stays pending."""
    settings.TASKS = {"default": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}}


def submit(user: User, *items: Any) -> AgentRun:
    return services.submit_agent_run(owner=user, input_payload=list(items))


def message(*parts: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "user", "content": list(parts), **fields}


@pytest.mark.parametrize(
    ("item", "path", "reason"),
    [
        ({"role": "alien"}, "role", "Unknown role"),
        ({"role": "alien", "content": "Hi"}, "role", "Unknown role"),
        ({"role": "tool", "tool_call_id": "c", "content": "Hi"}, "role", "Unknown role"),
        ({"role": "User", "content": "Hi"}, "role", "Did you mean 'user'?"),
        ({"type": "message", "content": "Hi"}, "role", "Unknown role"),
        ({"role": "user"}, "content", "Give a text"),
        ({"role": "user", "content": None}, "content", "Give a text"),
        ({"role": "user", "content": {"text": "Hi"}}, "content", "Give a text"),
        ({"role": "user", "content": " "}, "content", "not empty"),
        ({"role": "system", "content": ""}, "content", "not empty"),
        (message(), "content", "at least one part"),
        (message("Hi"), "content[0]", "Unknown type"),
        (message({"type": "text", "text": "Hi"}), "content[0]", "Unknown type. Known: input"),
        (message({"type": "output_text", "text": "Hi"}), "content[0]", "Did you mean"),
        (message({"type": "input_text"}), "content[0].text", "Field required."),
        (message({"type": "input_text", "text": 3}), "content[0].text", "valid string"),
        (message({"type": "input_text", "text": "\n"}), "content[0].text", "not empty"),
        (message({"type": "input_image"}), "content[0].image_url", "Give an http(s) URL"),
        (
            message({"type": "input_image", "image_url": "file:///etc/passwd"}),
            "content[0].image_url",
            "Give an http(s) URL",
        ),
        (
            message({"type": "input_image", "image_url": ["https://example.com"]}),
            "content[0].image_url",
            "valid string",
        ),
        (
            message({"type": "input_image", "image_url": "https://a.example", "detail": "best"}),
            "content[0].detail",
            "Input should be",
        ),
        (message({"type": "input_file", "filename": "a.pdf"}), "content[0]", "file_data"),
        ({"type": "alien"}, "type", "Unknown type"),
        ({"type": "function_cal", **HI}, "type", "Did you mean 'function_call'?"),
        ({"type": ["message"], "role": "user", "content": "Hi"}, "type", "Unknown type"),
        ({"type": "function_call", "call_id": "c", "name": "find"}, "arguments", "required"),
        ({"type": "item_reference"}, "id", "required"),
        (
            {"type": "reasoning", "summary": [{"type": "summary_text"}]},
            "summary[0].text",
            "required",
        ),
    ],
)
def test_a_malformed_item_is_refused_by_its_path(
    user: User, item: dict[str, Any], path: str, reason: str
) -> None:
    with pytest.raises(BadInput) as refused:
        submit(user, HI, item)
    [(name, text)] = refused.value.errors.items()
    assert name == f"input[1].{path}"
    assert reason in text
    assert not AgentRun.objects.exists()
    assert not AgentSession.objects.exists()


@pytest.mark.parametrize(
    "items",
    [
        [OUTPUT],
        [OUTPUT, CALL],
        [CALL, {**OUTPUT, "call_id": "d"}],
        [CALL, OUTPUT, OUTPUT],
        [{"type": "custom_tool_call", "call_id": "c", "name": "n", "input": ""}, OUTPUT],
        [{"type": "local_shell_call_output", "id": "c", "output": "x"}],
    ],
)
def test_an_output_without_its_call_is_refused(user: User, items: list[Any]) -> None:
    with pytest.raises(BadInput, match="This output has no") as refused:
        submit(user, *items)
    assert all(name.startswith("input[") for name in refused.value.errors)


def test_a_well_formed_history_is_accepted(user: User) -> None:
    answer = {"type": "output_text", "text": "Found."}
    items = [
        {"role": "system", "content": "Be brief."},
        message({"type": "input_text", "text": "Find it"}, type="message"),
        {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Hm"}]},
        {**CALL, "id": "fc_1", "status": "completed", "provider_data": {"model": "m"}},
        OUTPUT,
        {"role": "assistant", "content": [{**answer, "annotations": []}], "id": "msg_1"},
        {"role": "assistant", "type": "message", "content": [answer], "status": "completed"},
        {"role": "assistant", "content": ""},
        {"type": "item_reference", "id": "msg_2"},
        message({"type": "input_file", "file_id": "file-1"}),
        message({"type": "input_audio", "input_audio": {"data": "AA", "format": "mp3"}}),
    ]
    assert submit(user, *items).input_payload == items


def test_the_input_of_a_submitted_pipeline_is_checked_too(user: User) -> None:
    with pytest.raises(BadInput, match="Unknown role"):
        services.submit_pipeline_run(owner=user, steps=[], input_payload=[{"role": "alien"}])


def test_the_error_names_at_most_20_items(user: User) -> None:
    with pytest.raises(BadInput) as refused:
        submit(user, *[{"role": "alien"}] * 1000)
    assert len(refused.value.errors) == 20
