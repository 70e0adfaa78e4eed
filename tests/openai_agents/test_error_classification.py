"""What an exception means for a run: what is told, and whether to try again."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import agents
import httpx2
import openai
import pytest
from agents.exceptions import MaxTurnsExceeded, ModelBehaviorError, ToolTimeoutError, UserError
from django.db import IntegrityError, InterfaceError, OperationalError
from pydantic_ai.exceptions import ModelHTTPError

from agentic_django.exceptions import MESSAGES, NotSerializable, UnknownAgent, UnresolvedIntent
from agentic_django.openai_agents.error_classification import RetryDecision, classify, decide_retry
from agentic_django.openai_agents.provider_errors import ProviderAnswerError

REQUEST = httpx2.Request("POST", "http://localhost/v1/responses")


def answer(status: int, retry_after: str | None = None) -> openai.APIStatusError:
    headers = {} if retry_after is None else {"retry-after": retry_after}
    response = httpx2.Response(status, headers=headers, request=REQUEST)
    return openai.APIStatusError("no", response=response, body=None)


def tripwire(kind: type[Exception]) -> Exception:
    error = kind.__new__(kind)
    Exception.__init__(error, "tripped")
    return error


def from_tool(error: Exception) -> Exception:
    """Return what the SDK raises of an exception in a tool."""
    try:
        raise UserError("Error running tool") from error
    except UserError as raised:
        return raised


@pytest.mark.parametrize("status", [408, 409, 429, 500, 502, 503, 529])
def test_a_busy_provider_is_retried(status: int) -> None:
    assert classify(answer(status)) == RetryDecision("provider_busy", retry=True)


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_a_refused_account_or_model_is_not_configured(status: int) -> None:
    assert classify(answer(status)) == RetryDecision("not_configured")


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_refusal_is_not_retried(status: int) -> None:
    assert classify(answer(status)) == RetryDecision("provider_refused")


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("3", 3.0),
        ("0.5", 0.5),
        ("-1", 0.0),
        ("nan", 0.0),
        ("inf", 3600.0),
        ("1e30", 3600.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
        ("Wed, 21 Oct 2150 07:28:00 GMT", 3600.0),
        ("soon", 0.0),
    ],
)
def test_retry_after_is_honoured_up_to_an_hour(header: str, seconds: float) -> None:
    assert classify(answer(429, header)).after == seconds


def test_retry_after_may_be_given_in_milliseconds() -> None:
    error = answer(429, "3")
    error.response.headers["retry-after-ms"] = "1500"
    assert classify(error).after == 1.5


@pytest.mark.parametrize(
    "error",
    [
        httpx2.ConnectError("refused"),
        httpx2.ReadTimeout("slow"),
        openai.APIConnectionError(request=REQUEST),
        openai.APITimeoutError(request=REQUEST),
        ConnectionResetError(),
        ConnectionRefusedError(),
    ],
)
def test_an_unreachable_provider_is_retried(error: Exception) -> None:
    assert classify(error) == RetryDecision("provider_unreachable", retry=True)


@pytest.mark.parametrize("kind", [OperationalError, InterfaceError])
def test_an_unavailable_database_is_retried(kind: type[Exception]) -> None:
    assert classify(kind("closed")) == RetryDecision("database_away", retry=True)


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (MaxTurnsExceeded("10"), "max_turns"),
        (tripwire(agents.InputGuardrailTripwireTriggered), "guardrail"),
        (tripwire(agents.OutputGuardrailTripwireTriggered), "guardrail"),
        (tripwire(agents.ToolInputGuardrailTripwireTriggered), "guardrail"),
        (tripwire(agents.ToolOutputGuardrailTripwireTriggered), "guardrail"),
        (ToolTimeoutError("look", 3), "tool_timed_out"),
        (UnresolvedIntent(tool="pay"), "unresolved_intent"),
        (NotSerializable("a set"), "not_serializable"),
        (ValueError("a mistake"), "internal"),
        (IntegrityError("a mistake"), "internal"),
        (TimeoutError("a tool's own"), "internal"),
        (SystemExit(1), "internal"),
    ],
)
def test_permanent_errors_are_not_retried(error: BaseException, code: str) -> None:
    assert classify(error) == RetryDecision(code)
    assert code in MESSAGES


def test_each_error_of_the_app_has_a_message_for_people() -> None:
    assert classify(UnknownAgent("?")).code in MESSAGES


def test_the_cause_of_an_error_in_a_tool_decides() -> None:
    assert classify(from_tool(answer(429, "7"))) == RetryDecision(
        "provider_busy", retry=True, after=7.0
    )
    assert classify(from_tool(ConnectionResetError())).retry
    assert classify(from_tool(ValueError())) == RetryDecision("internal")


def test_circular_causes_are_examined_once() -> None:
    first, second = ValueError(), ValueError()
    first.__cause__, second.__cause__ = second, first
    assert classify(first) == RetryDecision("internal")


def host_classify(error: BaseException) -> RetryDecision:
    """Know one thing better than the app."""
    return (
        RetryDecision("provider_busy", retry=True)
        if isinstance(error, KeyError)
        else classify(error)
    )


@pytest.mark.parametrize("hook", [host_classify, f"{__name__}.host_classify"])
def test_a_hosts_function_classifies_errors(settings: Any, hook: Any) -> None:
    settings.AGENTIC_DJANGO_CLASSIFY_ERROR = hook
    assert decide_retry(KeyError("x")).retry
    assert decide_retry(MaxTurnsExceeded("10")) == RetryDecision("max_turns")


def raising(error: BaseException) -> RetryDecision:
    raise RuntimeError("A mistake.")


def saying_when(error: BaseException) -> RetryDecision:
    return RetryDecision("x", after="soon")  # type: ignore[arg-type]


@pytest.mark.parametrize("hook", [raising, lambda error: None, saying_when])
def test_the_default_classification_is_used_if_the_hosts_function_fails(
    settings: Any, caplog: pytest.LogCaptureFixture, hook: Any
) -> None:
    settings.AGENTIC_DJANGO_CLASSIFY_ERROR = hook
    assert decide_retry(answer(503)) == RetryDecision("provider_busy", retry=True)
    assert "AGENTIC_DJANGO_CLASSIFY_ERROR" in caplog.text


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (RetryDecision("x" * 100, True, 5), RetryDecision("x" * 64, True, 5)),
        (RetryDecision("x", True, float("nan")), RetryDecision("x", True, 0)),
        (RetryDecision("x", True, -5), RetryDecision("x", True, 0)),
        (RetryDecision("x", True, 1e9), RetryDecision("x", True, 3600)),
    ],
)
def test_the_decision_of_a_hosts_function_is_bounded(
    settings: Any, said: RetryDecision, kept: RetryDecision
) -> None:
    settings.AGENTIC_DJANGO_CLASSIFY_ERROR = lambda error: said
    assert decide_retry(ValueError()) == kept


# What providers and other frameworks say


def refusal(status: int, message: str = "no", **body: Any) -> openai.APIStatusError:
    response = httpx2.Response(status, request=REQUEST)
    return openai.APIStatusError(message, response=response, body={"message": message, **body})


@pytest.mark.parametrize(
    "error",
    [
        refusal(429, code="insufficient_quota", type="insufficient_quota"),
        refusal(429, type="insufficient_quota"),
        refusal(400, "Your credit balance is too low to access the API."),
        refusal(400, code="invalid_api_key"),
        refusal(400, code="model_not_found"),
        openai.OpenAIError("Missing credentials."),
        ModelHTTPError(401, "gpt-5", {"error": {"message": "no"}}),
    ],
    ids=repr,
)
def test_account_that_only_the_operator_can_repair_is_not_retried(error: Exception) -> None:
    assert classify(error) == RetryDecision("not_configured")


@pytest.mark.parametrize(
    "error",
    [
        refusal(400, code="context_length_exceeded"),
        refusal(400, "This model's maximum context length is 8192 tokens."),
        refusal(400, "prompt is too long: 210000 tokens > 200000 maximum"),
        refusal(400, "The input token count (1200000) exceeds the maximum number of tokens"),
        refusal(413, "Your input exceeds the context window of this model."),
        openai.APIError("Too long.", REQUEST, body={"code": "context_length_exceeded"}),
        ModelBehaviorError(
            "Responses stream ended with terminal event `response.failed`. status=failed; "
            "error=ResponseError(code='context_length_exceeded', message='Too long.')."
        ),
        ModelHTTPError(400, "claude", {"error": {"message": "prompt is too long: 3 > 2"}}),
    ],
    ids=repr,
)
def test_input_that_is_too_long_has_its_own_code(error: Exception) -> None:
    assert classify(error) == RetryDecision("input_too_long")


def test_missing_key_is_not_retried() -> None:
    with pytest.raises(openai.OpenAIError) as raised:
        openai.AsyncOpenAI()
    assert classify(raised.value) == RetryDecision("not_configured")


def test_limit_of_tokens_per_minute_is_not_an_input_that_is_too_long() -> None:
    error = refusal(429, "Request too large: reduce the length.", code="rate_limit_exceeded")
    assert classify(error) == RetryDecision("provider_busy", retry=True)


@pytest.mark.parametrize(
    "error",
    [
        openai.APIError("Slow down.", REQUEST, body={"code": "rate_limit_exceeded"}),
        openai.APIError("Overloaded", REQUEST, body={"type": "overloaded_error"}),
        ProviderAnswerError("server_error", "The server had an error."),
        ModelBehaviorError(
            "Responses stream ended with terminal event `response.failed`. status=failed; "
            "error=ResponseError(code='server_error', message='The server had an error.')."
        ),
    ],
    ids=repr,
)
def test_busy_provider_within_an_answer_is_retried(error: Exception) -> None:
    assert classify(error) == RetryDecision("provider_busy", retry=True)


class ForeignError(Exception):
    """An exception of a framework that the app does not know."""

    def __init__(self, **attributes: Any) -> None:
        super().__init__("of a framework")
        vars(self).update(attributes)


THROTTLED = {
    "Error": {"Code": "ThrottlingException", "Message": "Rate exceeded"},
    "ResponseMetadata": {"HTTPStatusCode": 400, "HTTPHeaders": {"retry-after": "7"}},
}


@pytest.mark.parametrize(
    "error",
    [
        ForeignError(status_code=429, headers={"Retry-After": "7"}),
        ForeignError(status=503, headers={"retry-after": "7"}),
        ForeignError(status_code=529, retry_after=7),
        ForeignError(http_status=504, headers={"retry-after-ms": "7000"}),
        ForeignError(code=429, response=SimpleNamespace(headers={"Retry-After": "7"})),
        ForeignError(response=SimpleNamespace(status_code=502, headers={"Retry-After": "7"})),
        ForeignError(response=THROTTLED),
        httpx2.HTTPStatusError(
            "busy",
            request=REQUEST,
            response=httpx2.Response(503, headers={"retry-after": "7"}, request=REQUEST),
        ),
    ],
    ids=lambda error: repr(vars(error)),
)
def test_busy_service_of_another_framework_is_retried_after_its_pause(error: Exception) -> None:
    assert classify(error) == RetryDecision("provider_busy", retry=True, after=7.0)


def test_pause_of_the_clients_error_counts_for_the_frameworks_own() -> None:
    error = ModelHTTPError(429, "gpt-5", None)
    error.__cause__ = answer(429, "7")
    assert classify(error) == RetryDecision("provider_busy", retry=True, after=7.0)


class ShyError(Exception):
    """An exception whose attributes cannot be read."""

    @property
    def status_code(self) -> int:
        raise RuntimeError("Not connected.")


@pytest.mark.parametrize(
    "error",
    [
        ForeignError(status_code=400),
        ForeignError(status_code=404),
        ForeignError(status_code=500),  # Django REST framework's default.
        ForeignError(status_code=True),
        ForeignError(status_code="429"),
        ForeignError(code="rate_limit_exceeded"),
        ForeignError(status=200, response=None, headers=3),
        ShyError(),
        ModelBehaviorError("Invalid JSON: code=server_error"),
    ],
    ids=repr,
)
def test_mistake_of_a_tool_is_not_taken_for_a_busy_provider(error: Exception) -> None:
    assert classify(error) == RetryDecision("internal")


@pytest.mark.parametrize("code", ["answer_cut_off", "answer_withheld"])
def test_incomplete_answer_has_its_own_code(code: str) -> None:
    reason = {"answer_cut_off": "max_output_tokens", "answer_withheld": "content_filter"}[code]
    text = f"event `response.incomplete`. incomplete_details=IncompleteDetails(reason='{reason}')."
    for error in (ProviderAnswerError(reason), ModelBehaviorError(f"ended with terminal {text}")):
        assert classify(error) == RetryDecision(code)
