"""Bodies that are made to be expensive cost linear time, and their errors are short."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from django.test import Client

pytestmark = pytest.mark.django_db

CREATE = "/agents/runs/"
LIMIT = 262_144


def send(client: Client, body: str) -> Any:
    return client.generic("POST", CREATE, body, content_type="application/json")


def repeated_name(count: int) -> str:
    names = ",".join(f'"{n:05}":1' for n in range(count))
    return f'{{{names},"{count - 1:05}":2}}'


def below_a_long_name(count: int) -> str:
    name, entries = "k" * (2 * count), ",".join("0" * count)
    return f'{{"input": 5, "context": {{"{name}": [{entries}]}}}}'


def unknown_fields_of_an_item(count: int) -> str:
    item = {"role": "user", "content": "Hi", **{f"{n:05}": 1 for n in range(count)}}
    return json.dumps({"input": [item]})


def unknown_parts(count: int) -> str:
    return json.dumps({"input": [{"role": "user", "content": [{"type": "x"}] * count}]})


def unknown_options(count: int) -> str:
    return json.dumps({"input": "Hi", "config": {f"{n:05}": 1 for n in range(count)}})


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (repeated_name, 26_000),
        (below_a_long_name, 64_000),
        (unknown_fields_of_an_item, 18_000),
        (unknown_parts, 15_000),
        (unknown_options, 18_000),
    ],
)
def test_the_cost_of_a_refused_body_is_linear(client: Client, build: Any, count: int) -> None:
    def seconds(size: int) -> float:
        body, times = build(size), []
        assert len(body) < LIMIT
        for _ in range(3):
            start = time.process_time()
            assert send(client, body).status_code == 400
            times.append(time.process_time() - start)
        return min(times)

    send(client, "{}")
    # Four times the size costs sixteen times as much where the cost is quadratic.
    assert seconds(count) < 9 * seconds(count // 4) + 0.02


@pytest.mark.parametrize(
    "body",
    [
        json.dumps({f"{n:05}": 1 for n in range(18_000)}),
        repeated_name(26_000),
        unknown_options(18_000),
        unknown_fields_of_an_item(18_000),
        unknown_parts(15_000),
        json.dumps({"n" * 250_000: 1}),
        json.dumps({"input": "Hi", "agent_key": "n" * 250_000}),
        json.dumps({"input": "Hi", "context": {"n" * 250_000: "\x00"}}),
        json.dumps({"input": [{"role": "n" * 250_000}]}),
        json.dumps({"input": [{"role": "user", "content": "Hi", "n" * 250_000: 1}]}),
        json.dumps({"input": "Hi", "config": {"n" * 250_000: 1}}),
    ],
)
def test_the_error_of_a_refused_body_names_the_first_20_and_is_short(
    client: Client, body: str
) -> None:
    for headers in ({}, {"HX-Request": "true"}):
        response = client.generic(
            "POST", CREATE, body, content_type="application/json", headers=headers
        )
        assert response.status_code == 400
        assert len(response.content) < 20_000
    assert len(send(client, body).json()["errors"]) <= 20


def test_a_forms_many_repeated_fields_are_named_up_to_20(client: Client) -> None:
    body = "&".join(f"f{n}=1&f{n}=2" for n in range(100))
    response = client.generic(
        "POST", CREATE, body, content_type="application/x-www-form-urlencoded"
    )
    assert response.status_code == 400
    assert len(response.json()["errors"]) == 20
