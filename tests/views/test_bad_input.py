"""Bad input is refused with a status and a message, and nothing is written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.test import Client, RequestFactory

from agentic_django import services
from agentic_django.models import AgentEvent, AgentRun, AgentSession, AgentSessionItem, RateWindow
from agentic_django.views import runs

pytestmark = pytest.mark.django_db

JSON = "application/json"
FORM = "application/x-www-form-urlencoded"
CREATE = "/agents/runs/"
HTMX = {"HX-Request": "true"}
BROWSER = {"Accept": "text/html"}


@pytest.fixture(autouse=True)
def limited(settings: Any) -> None:
    """Set a rate limit, so that the tests see whether a refused request is counted."""
    settings.AGENTIC_DJANGO_RATE_LIMIT = "20/m"


def send(client: Client, body: str | bytes, content_type: str = JSON, **options: Any) -> Any:
    return client.generic("POST", CREATE, body, content_type=content_type, **options)


def send_json(client: Client, **body: Any) -> Any:
    return send(client, json.dumps(body))


def assert_refused(response: Any, status: int, detail: str, field: str | None = None) -> None:
    """Check the problem's document, and that no row was written."""
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert (problem["type"], problem["status"]) == ("about:blank", status)
    assert problem["title"]
    assert problem["code"]
    assert problem["instance"] == CREATE
    assert detail in problem["detail"]
    fields = [error["field"] for error in problem.get("errors", [])]
    assert fields == ([field] if field else [])
    assert_nothing_was_written()


def assert_nothing_was_written() -> None:
    for model in (AgentRun, AgentSession, AgentSessionItem, AgentEvent, RateWindow):
        assert not model._default_manager.exists(), model


# Bodies


@pytest.mark.parametrize(
    ("body", "field", "detail"),
    [
        ("", "input", "Field required"),
        ("{}", "input", "Field required"),
        ("[]", "(body)", "Send a JSON object"),
        ('"Hello"', "(body)", "Send a JSON object"),
        ("null", "(body)", "Send a JSON object"),
        ("{", "(body)", "Invalid JSON"),
        ('{"input": "a",}', "(body)", "Invalid JSON"),
        ('\ufeff{"input": "a"}', "(body)", "Invalid JSON"),
        ('{"input": "a", "input": "b"}', "input", "given more than once"),
        ('{"input": "a", "context": {"b": 1, "b": 2}}', "b", "given more than once"),
        ('{"input": "a", "context": {"b": NaN}}', "context.b", "does not allow NaN"),
        ('{"input": "a", "context": {"b": -Infinity}}', "context.b", "does not allow NaN"),
        ('{"input": "a", "context": {"b": 1e999}}', "context.b", "does not allow NaN"),
        (f'{{"input": "a", "context": {{"b": {"9" * 5000}}}}}', "(body)", "Invalid JSON"),
        ('{"input": "a\\u0000b"}', "input", "U+0000"),
        ('{"input": [{"role": "user", "content": "\\u0000"}]}', "input[0].content", "U+0000"),
        ('{"input": "a\\ud800b"}', "input", "Lone surrogates"),
        ('{"input": "a", "context": {"\\udfff": 1}}', "context", "Lone surrogates"),
        ('{"input": "a", "\\u0000": 1}', "(field name)", "U+0000"),
        ('{"input": "a", "\\ud800": 1, "\\ud800": 1}', "(field name)", "Lone surrogates"),
        ('{"input": "a", "agent_key": "\\u0000"}', "agent_key", "U+0000"),
        ("[" * 100_000, "(body)", "nested too deeply"),
    ],
)
def test_an_invalid_json_body_is_refused(
    client: Client, body: str, field: str, detail: str
) -> None:
    assert_refused(send(client, body), 400, detail, field)


def test_json_that_is_nested_too_deeply_is_refused(client: Client) -> None:
    body = '{"input": "a", "context": {"b": ' + "[" * 70 + "]" * 70 + "}}"
    response = send(client, body)
    assert response.status_code == 400
    [error] = response.json()["errors"]
    assert error["field"].startswith("context.b[0]")
    assert error["detail"] == "The value is nested more than 64 levels deep."
    assert_nothing_was_written()


@pytest.mark.parametrize("field", ["input", "context"])
def test_a_number_that_is_too_long_to_store_is_refused(client: Client, field: str) -> None:
    item = '{"role": "user", "content": ' + "9" * 4100 + "}"
    value = f"[{item}]" if field == "input" else item
    body = f'{{"input": {value}}}' if field == "input" else f'{{"input": "a", "context": {value}}}'
    response = send(client, body)
    assert_refused(response, 400, "more than 4,000 digits")
    assert response.json()["code"] == "not_serializable"


def test_a_body_that_is_not_utf8_is_refused(client: Client) -> None:
    assert_refused(send(client, b'{"input": "\xff"}'), 400, "not UTF-8")


@pytest.mark.parametrize("value", ["", " \n", None, 3, True, {}, [], ["Hi"], [{}], [{"x": 1}]])
def test_input_that_is_neither_text_nor_items_is_refused(client: Client, value: Any) -> None:
    detail = "Give a text that is not empty, or a list of at least one input item"
    assert_refused(send_json(client, input=value), 400, detail, "input")


@pytest.mark.parametrize("value", ["", "a b", "a/b", "a.b", "ä", "x" * 256, "a\n", 7, ["a"]])
def test_an_invalid_session_key_is_refused(client: Client, value: Any) -> None:
    assert_refused(send_json(client, input="Hi", session_key=value), 400, "", "session_key")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("agent_key", 7),
        ("config", []),
        ("config", "{}"),
        ("context", "x"),
        ("context", None),
        ("on_busy", "wait"),
    ],
)
def test_a_field_of_a_wrong_type_is_refused(client: Client, field: str, value: Any) -> None:
    assert_refused(send_json(client, **{"input": "Hi", field: value}), 400, f"{field}: ", field)


def test_an_unknown_field_is_refused_with_a_suggestion(client: Client) -> None:
    response = send_json(client, input="Hi", sesion_key="s")
    assert_refused(response, 400, "Unknown field. Did you mean 'session_key'?", "sesion_key")


def test_the_error_names_all_wrong_fields(client: Client) -> None:
    response = send_json(client, agent_key=7, tools=[])
    assert [error["field"] for error in response.json()["errors"]] == [
        "input",
        "agent_key",
        "tools",
    ]
    assert_nothing_was_written()


def test_an_unknown_agent_is_refused_with_a_suggestion(client: Client) -> None:
    response = send_json(client, input="Hi", agent_key="ecko")
    assert_refused(response, 400, "Unknown agent 'ecko'. Did you mean 'echo'?", "agent_key")


@pytest.mark.parametrize("option", ["model", "tools", "conversation_id", "previous_response_id"])
def test_an_option_that_a_client_may_not_set_is_refused(client: Client, option: str) -> None:
    response = send_json(client, input="Hi", config={option: "x"})
    assert_refused(response, 400, "Allowed: max_turns (1 to 10).", f"config.{option}")


@pytest.mark.parametrize("turns", [0, -1, 11, 10**30, 1.5, "3", True, None, [1]])
def test_max_turns_beyond_the_limit_is_refused(client: Client, turns: Any) -> None:
    response = send_json(client, input="Hi", config={"max_turns": turns})
    assert_refused(response, 400, "config.max_turns: ", "config.max_turns")


# Sizes


def test_a_body_with_a_content_length_beyond_the_limit_is_not_read(
    user: User, settings: Any
) -> None:
    class Unread:
        def read(self, *args: Any) -> bytes:
            raise AssertionError("The body was read.")

    settings.AGENTIC_DJANGO_MAX_INPUT_BYTES = 100
    for content_type in (JSON, FORM, "multipart/form-data; boundary=x"):
        request = RequestFactory().generic("POST", CREATE, content_type=content_type)
        request.META |= {"CONTENT_LENGTH": "101", "wsgi.input": Unread()}
        request._stream = Unread()  # type: ignore[assignment]
        request.user = user
        response = runs.create(request)
        assert response.status_code == 413
    assert_nothing_was_written()


@pytest.mark.parametrize("content_type", [JSON, FORM])
def test_a_body_beyond_the_limit_is_refused(
    client: Client, settings: Any, content_type: str
) -> None:
    settings.AGENTIC_DJANGO_MAX_INPUT_BYTES = 100
    response = send(client, "x" * 101, content_type)
    assert_refused(response, 413, "101 bytes. The limit is 100")
    assert response.json()["code"] == "input_too_large"


@pytest.mark.parametrize("content_type", [JSON, FORM])
def test_a_long_body_without_content_length_is_not_parsed(
    user: User, settings: Any, content_type: str
) -> None:
    settings.AGENTIC_DJANGO_MAX_INPUT_BYTES = 100
    request = RequestFactory().generic("POST", CREATE, "x" * 101, content_type=content_type)
    del request.META["CONTENT_LENGTH"]
    request._body = b"x" * 101
    request.user = user
    request._dont_enforce_csrf_checks = True  # type: ignore[attr-defined]
    assert runs.create(request).status_code == 413
    assert_nothing_was_written()


@pytest.mark.parametrize("length", ["x", "-1", "1e3", "٣"])
def test_a_content_length_that_is_not_a_number_is_refused(client: Client, length: str) -> None:
    response = send(client, '{"input": "a"}', CONTENT_LENGTH=length)
    assert response.status_code == 400
    assert_nothing_was_written()


def test_a_body_beyond_djangos_own_limit_is_refused(client: Client, settings: Any) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 10
    for content_type in (JSON, FORM):
        assert_refused(send(client, "x" * 11, content_type), 413, "DATA_UPLOAD_MAX_MEMORY_SIZE")


def test_more_fields_than_django_accepts_are_refused(client: Client, settings: Any) -> None:
    settings.DATA_UPLOAD_MAX_NUMBER_FIELDS = 2
    assert_refused(send(client, "a=1&b=2&c=3", FORM), 400, "DATA_UPLOAD_MAX_NUMBER_FIELDS")


def test_too_many_items_are_refused(client: Client, settings: Any) -> None:
    settings.AGENTIC_DJANGO_MAX_INPUT_ITEMS = 2
    items = [{"role": "user", "content": "Hi"}] * 3
    assert_refused(send_json(client, input=items), 413, "Too many items: 3", "input")


# Forms


@pytest.mark.parametrize(
    ("body", "field", "detail"),
    [
        ("", "input", "Field required"),
        ("input=", "input", "Field required"),
        ("input=+", "input", "Give a text that is not empty"),
        ("input=a&input=b", "input", "given more than once"),
        ("input=a%00b", "input", "U+0000"),
        ("input=a&colour=red", "colour", "Unknown field"),
        ("input=a&config=x", "config", "Invalid JSON"),
        ("input=a&context=[1]", "context", "Send a JSON object"),
        ('input=a&context={"b":NaN}', "context.b", "does not allow NaN"),
        ("input=a&session_key=a+b", "session_key", "1 to 255 ASCII letters"),
    ],
)
def test_a_form_with_wrong_fields_is_refused(
    client: Client, body: str, field: str, detail: str
) -> None:
    assert_refused(send(client, body, FORM), 400, detail, field)


@pytest.mark.parametrize(
    "content_type",
    [
        "multipart/form-data",
        "multipart/form-data; boundary=",
        "multipart/form-data; boundary=\xe4",
        "multipart/form-data; boundary=x; charset=rot13",
        f"{FORM}; charset=latin-1",
    ],
)
def test_a_form_that_cannot_be_parsed_is_refused(client: Client, content_type: str) -> None:
    body = b'--x\r\nContent-Disposition: form-data; name="input"\r\n\r\nHi\r\n--x--\r\n'
    response = send(client, body, content_type)
    assert response.status_code == 400, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    assert_nothing_was_written()


def test_a_file_is_refused(client: Client) -> None:
    body = (
        b'--x\r\nContent-Disposition: form-data; name="input"; filename="a.txt"\r\n\r\nHi\r\n'
        b'--x\r\nContent-Disposition: form-data; name="file"; filename="b.txt"\r\n\r\nHi\r\n'
        b"--x--\r\n"
    )
    response = send(client, body, "multipart/form-data; boundary=x")
    assert response.status_code == 400
    assert {error["field"] for error in response.json()["errors"]} == {"input", "file"}
    assert_nothing_was_written()


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "application/jsonx"])
def test_a_body_of_another_content_type_is_refused(client: Client, content_type: str) -> None:
    response = send(client, '{"input": "a"}', content_type)
    assert_refused(response, 415, "Send application/json or a form")


# Methods, login, CSRF


@pytest.mark.parametrize("method", ["put", "patch", "delete", "options"])
def test_the_error_of_a_wrong_method_names_the_allowed_ones(client: Client, method: str) -> None:
    response = getattr(client, method)(CREATE)
    assert_refused(
        response, 405, f"{method.upper()} is not allowed here. Allowed: GET, HEAD, POST."
    )
    assert response.headers["Allow"] == "GET, HEAD, POST"


def test_a_json_client_must_log_in(anonymous_client: Client) -> None:
    response = send_json(anonymous_client, input="Hi")
    assert_refused(response, 401, "Log in first")
    assert response.json()["code"] == "login_required"


def test_htmx_is_redirected_to_the_login_and_back(anonymous_client: Client) -> None:
    headers = {**HTMX, "HX-Current-URL": "http://testserver/desk/?a=1"}
    response = anonymous_client.post(CREATE, {"input": "Hi"}, headers=headers)
    assert response.status_code == 401
    assert response.headers["HX-Redirect"] == "/admin/login/?next=/desk/%3Fa%3D1"
    assert_nothing_was_written()


@pytest.mark.parametrize("page", ["https://evil.example/", "javascript:alert(1)", ""])
def test_the_login_does_not_redirect_to_another_site(anonymous_client: Client, page: str) -> None:
    headers = {**HTMX, "HX-Current-URL": page}
    response = anonymous_client.post(CREATE, {"input": "Hi"}, headers=headers)
    assert "evil" not in response.headers["HX-Redirect"]
    assert "alert" not in response.headers["HX-Redirect"]


def test_a_browser_is_redirected_to_the_login_and_back(anonymous_client: Client) -> None:
    address = "/agents/sessions/s/"
    response = anonymous_client.get(address, headers=BROWSER)
    assert response.status_code == 302
    assert response.headers["Location"] == f"/admin/login/?next={address}"


def test_a_browsers_form_is_redirected_to_the_login_and_back_to_its_page(
    anonymous_client: Client,
) -> None:
    headers = {**BROWSER, "Referer": "http://testserver/desk/"}
    response = anonymous_client.post(CREATE, {"input": "Hi"}, headers=headers)
    assert response.headers["Location"] == "/admin/login/?next=/desk/"
    assert_nothing_was_written()


@pytest.mark.parametrize("content_type", [JSON, FORM, "multipart/form-data; boundary=x"])
def test_a_request_without_a_csrf_token_is_refused(user: User, content_type: str) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(user)
    response = send(client, '{"input": "a"}' if content_type == JSON else "", content_type)
    assert_refused(response, 403, "CSRF verification failed")
    assert response.json()["code"] == "csrf"


@pytest.mark.django_db(transaction=True)
def test_a_request_with_a_csrf_token_is_accepted(user: User) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(user)
    client.cookies["csrftoken"] = token = "a" * 32
    assert client.post(CREATE, {"input": "a", "csrfmiddlewaretoken": token}).status_code == 201
    response = send(client, '{"input": "a"}', headers={"X-CSRFToken": token})
    assert response.status_code == 201


# The caller's format


@pytest.mark.parametrize(("headers", "is_page"), [(HTMX, False), (BROWSER, True)])
def test_browsers_and_htmx_receive_errors_as_html(
    client: Client, headers: dict[str, str], is_page: bool
) -> None:
    response = client.post(CREATE, {"input": "a", "agent_key": "<ecko>"}, headers=headers)
    assert response.status_code == 400
    assert response.headers["Content-Type"] == "text/html; charset=utf-8"
    assert "Unknown agent &#x27;&lt;ecko&gt;&#x27;" in response.text
    assert ("<html" in response.text) is is_page
    assert_nothing_was_written()


# Query strings


@pytest.fixture
def run(user: User, settings: Any) -> AgentRun:
    settings.TASKS = {"default": {"BACKEND": "django.tasks.backends.dummy.DummyBackend"}}
    return services.submit_agent_run(owner=user, input_payload="Hello")


@pytest.mark.parametrize("name", ["after", "limit"])
@pytest.mark.parametrize("value", ["-1", "x", "", "1.5", "9" * 5000, "NaN", "0x1", "%00"])
def test_an_invalid_number_in_the_query_of_events_is_refused(
    client: Client, run: AgentRun, name: str, value: str
) -> None:
    response = client.get(f"/agents/runs/{run.pk}/events/?{name}={value}")
    assert response.status_code == 400
    assert [error["field"] for error in response.json()["errors"]] == [name]


def test_events_after_a_number_beyond_the_column_are_none(client: Client, run: AgentRun) -> None:
    response = client.get(f"/agents/runs/{run.pk}/events/?after={10**30}")
    assert (response.status_code, response.json()["next_after"]) == (200, 10**30)


@pytest.mark.parametrize("query", ["limit=0", "limit=1&limit=2", "visibility=internal"])
def test_a_wrong_parameter_of_events_is_refused(client: Client, run: AgentRun, query: str) -> None:
    assert client.get(f"/agents/runs/{run.pk}/events/?{query}").status_code == 400


@pytest.mark.django_db(transaction=True)  # A poll looks after lost runs, in a thread.
@pytest.mark.parametrize("version", ["", "%00", "x" * 5000, "a&v=b"])
def test_a_poll_accepts_any_version(client: Client, run: AgentRun, version: str) -> None:
    assert client.get(f"/agents/runs/{run.pk}/fragment/?v={version}").status_code == 200


@pytest.mark.parametrize("verb", ["cancel", "retry"])
def test_an_unknown_field_of_cancel_or_retry_is_refused(
    client: Client, run: AgentRun, verb: str
) -> None:
    body = json.dumps({"start_agian": True})
    response = client.post(f"/agents/runs/{run.pk}/{verb}/", body, content_type=JSON)
    assert response.status_code == 400
    assert "start_agian: Unknown field." in response.json()["detail"]
    assert AgentRun.objects.get().status == "pending"


@pytest.mark.parametrize("value", ["true", 1, None, []])
def test_start_again_must_be_a_boolean(client: Client, run: AgentRun, value: Any) -> None:
    body = json.dumps({"start_again": value})
    response = client.post(f"/agents/runs/{run.pk}/retry/", body, content_type=JSON)
    assert response.status_code == 400
    assert [error["field"] for error in response.json()["errors"]] == ["start_again"]
