"""What is stored comes back the same; what would be lost is refused, naming where it stands."""

from __future__ import annotations

import json
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import pytest
from django.contrib.auth.models import User
from django.core import serializers
from django.db import connection, transaction
from django.utils.translation import gettext_lazy, override
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from agentic_django import serialization
from agentic_django.exceptions import NotSerializable
from agentic_django.models import AgentEvent, AgentRun, AgentSessionItem
from tests.support.rows import make_events, make_run, make_session


class Colour(Enum):
    RED = "red"


class Size(IntEnum):
    BIG = 3


class Word(StrEnum):
    HELLO = "hello"


class Point(NamedTuple):
    x: int
    y: int


@dataclass
class Line:
    start: Point
    colour: Colour
    note: str | None = None


class Order(BaseModel):
    number: int
    due: date
    lines: list[str] = []


class Parcel(BaseModel):
    weight: float = 1.0
    label: bytes = b""
    anything: Any = None


# To plain values


@pytest.mark.parametrize(
    ("value", "plain"),
    [
        (None, None),
        (True, True),
        (7, 7),
        (10**40, 10**40),
        (1.5, 1.5),
        ("é\u0000\ud800", "é\u0000\ud800"),
        ([1, (2, 3)], [1, [2, 3]]),
        ({"b": 1, "a": 2}, {"b": 1, "a": 2}),
        (OrderedDict(b=1), {"b": 1}),
        (Colour.RED, "red"),
        (Size.BIG, 3),
        (Word.HELLO, "hello"),
        (Point(1, 2), [1, 2]),
        (Line(Point(1, 2), Colour.RED), {"start": [1, 2], "colour": "red", "note": None}),
        (Order(number=7, due=date(2026, 1, 2)), {"number": 7, "due": "2026-01-02", "lines": []}),
        (date(2026, 1, 2), "2026-01-02"),
        (datetime(2026, 1, 2, 3, 4, tzinfo=UTC), "2026-01-02T03:04:00Z"),
        (time(3, 4), "03:04:00"),
        (timedelta(hours=1), "PT1H"),
        (Decimal("1.10"), "1.10"),
        (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
    ],
)
def test_a_value_becomes_plain(value: Any, plain: Any) -> None:
    made = serialization.to_jsonable(value)
    assert made == plain
    assert type(made) is type(plain)


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (b"bytes", "value is of type bytes"),
        ({"a": [0, b"x"]}, r"value\.a\[1\] is of type bytes"),
        ({1, 2}, "of type set"),
        (object(), "of type object"),
        (Path("x"), "of type PosixPath"),
        (len, "of type builtin_function_or_method"),
        (Order, "of type ModelMetaclass"),
        (Line, "of type type"),
        (1j, "of type complex"),
        (iter([]), "of type list_iterator"),
        (float("nan"), "value is nan, which is not a number in JSON"),
        ([float("inf")], r"value\[0\] is inf"),
        ({1: "a"}, "the key 1; keys of JSON objects are strings"),
        ({"a": {None: 1}}, r"value\.a has the key None"),
        (Line(Point(1, 2), Colour.RED, b"x"), r"value\.note is of type bytes"),  # type: ignore[arg-type]
        (Parcel(weight=float("inf")), r"value\.weight is inf"),
        (Parcel(label=b"\xff"), "Parcel"),
        (Parcel(anything=object()), "Parcel"),
    ],
)
def test_what_json_would_lose_is_refused_with_its_place(value: Any, where: str) -> None:
    with pytest.raises(NotSerializable, match=where):
        serialization.to_jsonable(value)


def test_the_refusal_names_the_value_as_its_caller_does() -> None:
    with pytest.raises(NotSerializable, match=r"final_output\.a is of type bytes"):
        serialization.to_jsonable({"a": b""}, "final_output")


def test_the_refusal_says_what_to_return_instead() -> None:
    with pytest.raises(NotSerializable, match="a dataclass or a pydantic model"):
        serialization.to_jsonable(object())


def test_the_given_value_is_left_as_it_is() -> None:
    value = {"a": [Colour.RED]}
    serialization.to_jsonable(value)["a"].append(1)
    assert value == {"a": [Colour.RED]}


# To text

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=())),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=())), inner)
    ),
    max_leaves=20,
)


@given(json_values)
def test_any_json_comes_back_the_same(value: Any) -> None:
    text = serialization.dumps(value)
    assert text.isascii()
    assert "\x00" not in text
    assert serialization.loads(text) == value


def test_text_keeps_order_and_numbers() -> None:
    text = serialization.dumps({"b": 1.0, "a": 10**20, "c": 1e22})
    assert text == '{"b":1.0,"a":100000000000000000000,"c":1e+22}'


@pytest.mark.parametrize("value", [float("nan"), b"", {"a": {1: 2}}])
def test_no_text_is_made_of_what_json_cannot_hold(value: Any) -> None:
    with pytest.raises(NotSerializable):
        serialization.dumps(value)


# In the database


@pytest.mark.django_db
@pytest.mark.parametrize(
    "value",
    [
        "plain",
        "\x00",
        "\ud800 half",
        "\udfff",
        "😀",
        ["\x00", {"\ud800": "\x00"}],
        {"z": 1, "a": 2},
        {"big": 10**30, "small": 1e-300},
        "",
        [],
        {},
        0,
        False,
    ],
)
def test_a_column_keeps_what_databases_refuse(user: User, value: Any) -> None:
    run = make_run(user, input_payload=value)
    assert AgentRun.objects.get(pk=run.pk).input_payload == value
    session = make_session(user)
    AgentSessionItem.objects.create(session=session, sequence=1, payload=value)
    assert AgentSessionItem.objects.values_list("payload", flat=True).get() == value
    make_events(run, 1, payload={"text": value})
    assert AgentEvent.objects.get().payload == {"text": value}


@pytest.mark.django_db
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(value=json_values.filter(lambda value: value is not None))
def test_a_column_keeps_any_json(user: User, value: Any) -> None:
    run = make_run(user, input_payload=value)
    assert AgentRun.objects.get(pk=run.pk).input_payload == value


@pytest.mark.django_db
def test_a_column_keeps_the_order_of_keys(user: User) -> None:
    run = make_run(user, input_payload=[{"z": 1, "role": "user", "a": 2}])
    read = AgentRun.objects.get(pk=run.pk).input_payload
    assert list(read[0]) == ["z", "role", "a"]


@pytest.mark.django_db
def test_a_column_holds_text_that_any_tool_reads(user: User) -> None:
    run = make_run(user, input_payload=["é"])
    with connection.cursor() as cursor:
        cursor.execute("SELECT input_payload FROM agentic_django_agentrun")
        (text,) = cursor.fetchone()
    assert text == '["\\u00e9"]'
    assert json.loads(text) == run.input_payload


@pytest.mark.django_db
def test_nothing_is_stored_as_sql_null(user: User) -> None:
    run = make_run(user)
    assert AgentRun.objects.filter(final_output__isnull=True).get() == run
    assert run.final_output is None


@pytest.mark.django_db
def test_a_column_refuses_what_json_cannot_hold(user: User) -> None:
    with pytest.raises(NotSerializable), transaction.atomic():
        make_run(user, input_payload=b"bytes")
    assert not AgentRun.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("value", ["Hello", "[1]", "\x00\ud800", ["a", {"b": None}], 7, None])
def test_rows_survive_dumpdata_and_loaddata(user: User, value: Any) -> None:
    run = make_run(user, session=make_session(user), input_payload=value or "")
    AgentRun.objects.filter(pk=run.pk).update(final_output=value)
    text = serializers.serialize("json", AgentRun.objects.all())
    AgentRun.objects.all().delete()
    for row in serializers.deserialize("json", text):
        row.save()
    loaded = AgentRun.objects.get()
    assert (loaded.pk, loaded.final_output, loaded.position) == (run.pk, value, run.position)


@pytest.mark.parametrize(
    "value", [10**4000, -(10**5000), {"a": [10**4500]}], ids=["even", "less", "within"]
)
def test_numbers_that_python_would_not_write_are_refused_at_once(value: Any) -> None:
    with pytest.raises(NotSerializable, match="more than 4,000 digits"):
        serialization.to_jsonable(value)


def test_what_is_nested_too_deeply_is_refused_and_less_is_kept() -> None:
    value: Any = "core"
    for _ in range(490):
        value = [value]
    assert serialization.loads(serialization.dumps(value)) == value
    for _ in range(20):
        value = {"in": value}
    with pytest.raises(NotSerializable, match="nested more than 500 levels"):
        serialization.to_jsonable(value)


def test_a_text_to_be_translated_is_what_it_is_now() -> None:
    assert serialization.to_jsonable({"a": gettext_lazy("yes")}) == {"a": "yes"}
    with override("de"):
        assert serialization.to_jsonable(gettext_lazy("yes")) == "ja"
