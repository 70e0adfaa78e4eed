"""Pictures that tools return and models make."""

from __future__ import annotations

import base64
from typing import Any

import pytest
from agents import ModelResponse, ToolOutputImage, Usage, function_tool
from django.contrib.auth.models import User
from django.test import Client
from django.urls import reverse
from openai.types.responses.response_output_item import ImageGenerationCall

from agentic_django.models import AgentRun
from agentic_django.openai_agents.conversion import dump_response, response_events
from agentic_django.presentation.images import image_numbers
from agentic_django.services import submit_agent_run
from tests.support.agents import call_tool
from tests.support.rows import make_checkpoint, make_events, make_run

pytestmark = pytest.mark.django_db(transaction=True)

PNG = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNkYPhfDwAChwGA60e6kgAAAABJRU5ErkJggg=="
)
URL = f"data:image/png;base64,{base64.b64encode(PNG).decode()}"


@function_tool
def draw() -> ToolOutputImage:
    """Draw a dot."""
    return ToolOutputImage(image_url=URL)


def shown(client: Client, run: AgentRun) -> str:
    return client.get(reverse("agents:run-fragment", args=[run.pk])).text


def address(run: AgentRun, call_id: str, number: int = 1) -> str:
    return reverse("agents:run-picture", args=[run.pk, call_id, number])


def test_image_of_a_tool_is_shown_and_served(client: Client, user: User, scripted: Any) -> None:
    scripted("default", call_tool("draw"), "Here it is.", tools=[draw])
    run = submit_agent_run(owner=user, input_payload="Draw", agent_key="default")
    assert f'src="{address(run, "call-1")}"' in shown(client, run)
    response = client.get(address(run, "call-1"))
    assert response.content == PNG
    assert response.headers["Content-Type"] == "image/png"
    assert response.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in response.headers["Content-Security-Policy"]


def test_image_that_the_model_generated_is_shown_and_served(client: Client, user: User) -> None:
    encoded = base64.b64encode(PNG).decode()
    item = ImageGenerationCall(
        id="ig_1", result=encoded, status="completed", type="image_generation_call"
    )
    response = ModelResponse(output=[item], usage=Usage(), response_id=None)
    run = make_run(user, "running")
    make_checkpoint(run, result=dump_response(response))
    for told in response_events(response, "painter", nested=False, handoffs=[]):
        make_events(run, 1, event_type=told.event_type, payload=told.payload)
    assert f'src="{address(run, "ig_1")}"' in shown(client, run)
    served = client.get(address(run, "ig_1"))
    assert (served.content, served.headers["Content-Type"]) == (PNG, "image/png")


@pytest.mark.parametrize(
    "url",
    [
        "https://a.example/leak.png",
        "data:image/svg+xml;base64,PHN2Zz4=",
        "data:text/html;base64,PHA+",
        "javascript:alert(1)",
        "",
    ],
)
def test_image_from_elsewhere_or_of_another_kind_is_not_loaded(url: str) -> None:
    assert image_numbers("c", {"type": "image", "image_url": url}) == []


@pytest.mark.parametrize("call_id", ["a/b", "", "a b", "x" * 201, "ä"])
def test_call_whose_id_does_not_fit_a_url_shows_no_image(call_id: str) -> None:
    assert image_numbers(call_id, {"type": "image", "image_url": URL}) == []


@pytest.mark.parametrize(("call_id", "number"), [("none", 1), ("c", 2), ("c", 0), ("bad", 1)])
def test_missing_image_is_not_found(client: Client, user: User, call_id: str, number: int) -> None:
    run = make_run(user)
    part = {"type": "image", "image_url": URL}
    broken = {"type": "image", "image_url": "data:image/png;base64,abc"}
    make_checkpoint(run, "main:tool:c", kind="tool", result=[part])
    make_checkpoint(run, "main:tool:bad", kind="tool", result=[broken])
    make_checkpoint(run, "main:model:1", result={"output": [{"type": "message"}]})
    assert client.get(address(run, call_id, number)).status_code == 404
    assert client.get(address(run, "c")).status_code == 200


@pytest.mark.parametrize(
    "part",
    [
        {"type": "generated_image"},
        {"type": "generated_image", "image_url": []},
        {"type": "image", "image_url": []},
        {"type": "input_image", "image_url": {"url": URL}},
        {"type": "generated_image", "image_url": None},
        "generated_image",
    ],
)
def test_part_without_an_image_is_not_found(client: Client, user: User, part: Any) -> None:
    run = make_run(user)
    make_checkpoint(run, "main:tool:c", kind="tool", result=[part])
    assert client.get(address(run, "c")).status_code == 404


@pytest.mark.parametrize("output", [None, [], [None, "x"], [{"type": "image_generation_call"}]])
def test_answer_without_an_image_is_not_found(client: Client, user: User, output: Any) -> None:
    run = make_run(user)
    make_checkpoint(run, "main:model:1", result={"output": output})
    assert client.get(address(run, "ig_1")).status_code == 404


def test_image_of_another_user_is_not_found(other_client: Client, user: User) -> None:
    run = make_run(user)
    part = {"type": "image", "image_url": URL}
    make_checkpoint(run, "main:tool:c", kind="tool", result=[part])
    assert other_client.get(address(run, "c")).status_code == 404
