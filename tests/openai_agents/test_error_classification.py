"""What an exception means for a run: what is told, and whether to try again."""

from __future__ import annotations

from typing import Any

import agents
import httpx2
import openai
import pytest
from agents.exceptions import MaxTurnsExceeded, ToolTimeoutError, UserError
from django.db import IntegrityError, InterfaceError, OperationalError

from agentic_django.exceptions import MESSAGES, NotSerializable, UnknownAgent, UnresolvedIntent
from agentic_django.openai_agents.error_classification import RetryDecision, classify, decide_retry

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


@pytest.mark.parametrize("status", [400, 401, 403, 404, 413, 422])
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
