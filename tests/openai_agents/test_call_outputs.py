"""Outputs of calls that the engine rebuilds are those that the Agents SDK makes."""

from __future__ import annotations

from typing import Any

import pytest
from agents.items import ItemHelpers
from openai.types.responses import ResponseFunctionToolCall

from agentic_django.engine.unfinished_turns import call_output

CALL = {"type": "function_call", "call_id": "c1", "name": "look", "arguments": "{}"}

RESULTS = [
    "Sunny.",
    "",
    None,
    True,
    12,
    1.5,
    [],
    {},
    ["a", 1],
    {"city": "Oslo", "rain": None},
    {"type": "text", "text": "Sunny."},
    {"type": "text", "text": ""},
    {"type": "text", "text": 1},
    {"type": "text", "text": "Sunny.", "extra": 1},
    {"type": "text"},
    {"text": "Sunny."},
    {"type": "image", "image_url": "https://example.com/a.png"},
    {"type": "image", "file_id": "f1", "detail": "low", "image_url": None},
    {"type": "image", "file_id": "f1", "detail": "huge"},
    {"type": "image", "image_url": 1, "file_id": "f1"},
    {"type": "image", "detail": "low"},
    {"type": "file", "file_data": "YQ==", "filename": "a.txt"},
    {"type": "file", "file_url": "https://example.com/a.pdf"},
    {"type": "file", "file_id": "f1", "filename": None},
    {"type": "file", "filename": "a.txt"},
    {"type": "other", "text": "Sunny."},
    {"type": ["text"], "text": "Sunny."},
    [{"type": "text", "text": "Sunny."}, {"type": "image", "file_id": "f1"}],
    [{"type": "text", "text": "Sunny."}, {"type": "image"}],
    [{"type": "text", "text": "Sunny."}, "Rain."],
]


@pytest.mark.parametrize(
    "caller", [None, {"type": "program", "caller_id": "p1"}, {"type": "direct"}]
)
@pytest.mark.parametrize("result", RESULTS, ids=str)
def test_rebuilt_output_is_the_output_that_the_sdk_makes(result: Any, caller: Any) -> None:
    call = CALL if caller is None else CALL | {"caller": caller}
    expected = ItemHelpers.tool_call_output_item(ResponseFunctionToolCall(**call), result)
    assert call_output(call, result) == expected, (
        "The SDK makes another output: change agentic_django.engine.unfinished_turns.call_output."
    )


def test_output_of_a_custom_call_has_its_own_type() -> None:
    call = CALL | {"type": "custom_tool_call"}
    assert call_output(call, "Sunny.")["type"] == "custom_tool_call_output"
