"""Decides the error code of an exception, and whether its run is retried.

The first rule of ``_RULES`` that matches the exception, or one of its causes, decides.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from math import isnan
from typing import Any

import agents
import openai
from agents.exceptions import MaxTurnsExceeded, ToolTimeoutError
from django.db import InterfaceError, OperationalError
from django.utils.http import parse_http_date_safe
from django.utils.module_loading import import_string

from agentic_django.conf import load, settings
from agentic_django.exceptions import (
    MESSAGES,
    AgenticError,
    StepTimeoutError,
    UserError,
    message_for_code,
)
from agentic_django.signals import logger

__all__ = ["RetryDecision", "classify", "decide_retry", "user_message"]

_LONGEST_PAUSE = 3600.0
_LONGEST_CODE = 64
_TRIPWIRES = (
    agents.InputGuardrailTripwireTriggered,
    agents.OutputGuardrailTripwireTriggered,
    agents.ToolInputGuardrailTripwireTriggered,
    agents.ToolOutputGuardrailTripwireTriggered,
)


@dataclass(frozen=True, slots=True)
class RetryDecision:
    """The decision about an exception that ended an attempt.

    - ``code``: the error code, a key of ``exceptions.MESSAGES``.
    - ``retry``: whether another attempt may succeed.
    - ``after``: the seconds that the provider asks to wait before a retry.
    """

    code: str
    retry: bool = False
    after: float = 0.0


def decide_retry(error: BaseException) -> RetryDecision:
    """Return the decision of the host's ``AGENTIC_DJANGO_CLASSIFY_ERROR``, or of ``classify``.

    If the host's function fails, log the error and use ``classify``.
    """
    hook = settings.CLASSIFY_ERROR
    if not hook:
        return classify(error)
    try:
        decision = load(hook)(error)
        code, after = str(decision.code)[:_LONGEST_CODE], _bounded(float(decision.after))
        return RetryDecision(code, bool(decision.retry), after)
    except Exception:  # noqa: BLE001 - the host's function may fail in any way
        logger.exception("AGENTIC_DJANGO_CLASSIFY_ERROR, %s, failed", hook)
        return classify(error)


def classify(error: BaseException) -> RetryDecision:
    """Return the app's own decision about an exception.

    Connection errors and timeouts of a provider, the database or httpx are retried. A provider's
    responses 408, 409, 429 and 5xx are retried after their ``Retry-After``. Other exceptions are
    not retried: refusals, guardrail tripwires, too many turns, the app's own errors, and unknown
    exceptions, which may be a bug in a tool. Causes are examined too, because the SDK raises its
    own error from a tool's exception.

    A host may name a function with the same signature in ``AGENTIC_DJANGO_CLASSIFY_ERROR``. It can
    call this function for exceptions that it does not handle.
    """
    cause: BaseException | None = error
    seen: set[int] = set()
    while cause is not None and id(cause) not in seen:
        for kinds, judge in _RULES:
            if isinstance(cause, kinds):
                return judge(cause)
        seen.add(id(cause))
        cause = cause.__cause__
    return RetryDecision("internal")


def user_message(error: BaseException) -> dict[str, str]:
    """Return the error code and the user's message for an exception in a step."""
    if isinstance(error, UserError):
        return {"code": error.code, "error": str(error)}
    code = "timed_out" if isinstance(error, StepTimeoutError) else classify(error).code
    return {"code": code, "error": str(message_for_code(code))}


def _from_app_error(error: Any) -> RetryDecision:
    return RetryDecision(error.code if error.code in MESSAGES else "internal")


def _from_status(error: Any) -> RetryDecision:
    if error.status_code in (408, 409, 429) or error.status_code >= 500:
        return RetryDecision("provider_busy", retry=True, after=_retry_after(error))
    return RetryDecision("provider_refused")


def _retry_after(error: openai.APIStatusError) -> float:
    headers = error.response.headers
    with suppress(ValueError):
        return _bounded(float(headers.get("retry-after-ms", "")) / 1000)
    with suppress(ValueError):
        return _bounded(float(headers.get("retry-after", "")))
    moment = parse_http_date_safe(headers.get("retry-after", ""))
    return 0.0 if moment is None else _bounded(moment - time.time())


def _bounded(seconds: float) -> float:
    return 0.0 if isnan(seconds) else min(max(0.0, seconds), _LONGEST_PAUSE)


def _unreachable() -> tuple[type[Exception], ...]:
    """Return the exceptions of the installed HTTP clients that are connection errors."""
    names = ("NetworkError", "TimeoutException", "RemoteProtocolError")
    clients = [client for client in ("httpx", "httpx2") if find_spec(client)]
    return tuple(import_string(f"{client}.{name}") for client in clients for name in names)


def _fixed(decision: RetryDecision) -> Callable[[Any], RetryDecision]:
    return lambda error: decision


_RULES: list[tuple[Any, Callable[[Any], RetryDecision]]] = [
    (AgenticError, _from_app_error),
    (MaxTurnsExceeded, _fixed(RetryDecision("max_turns"))),
    (_TRIPWIRES, _fixed(RetryDecision("guardrail"))),
    (ToolTimeoutError, _fixed(RetryDecision("tool_timed_out"))),
    (openai.APIStatusError, _from_status),
    (openai.APIConnectionError, _fixed(RetryDecision("provider_unreachable", retry=True))),
    ((OperationalError, InterfaceError), _fixed(RetryDecision("database_away", retry=True))),
    ((ConnectionError, *_unreachable()), _fixed(RetryDecision("provider_unreachable", retry=True))),
]
