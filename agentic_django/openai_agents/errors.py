"""What an exception means for a run: what a person is told, and whether to try again."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
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
    """``code`` names the reason (a key of ``exceptions.MESSAGES``); ``retry`` says whether the
    same may pass later, and ``after`` how many seconds the provider wants to be left alone."""

    code: str
    retry: bool = False
    after: float = 0.0


def decide_retry(error: BaseException) -> RetryDecision:
    """Return the verdict of the host's ``AGENTIC_DJANGO_CLASSIFY_ERROR``, or of ``classify``.

    The latter has the word where the host's own function fails: the run has to end.
    """
    hook = settings.CLASSIFY_ERROR
    if not hook:
        return classify(error)
    try:
        return _usable(load(hook)(error))
    except Exception:  # noqa: BLE001 - a mistake in the host's code
        logger.exception("AGENTIC_DJANGO_CLASSIFY_ERROR, %s, failed", hook)
        return classify(error)


def _usable(verdict: RetryDecision) -> RetryDecision:
    """Return a verdict that can be kept, and acted on."""
    after = _bounded(float(verdict.after))
    return RetryDecision(str(verdict.code)[:_LONGEST_CODE], bool(verdict.retry), after)


def classify(error: BaseException) -> RetryDecision:
    """Return what an exception means.

    Tried again are connection errors and time-outs of a provider, the database or httpx, and a
    provider's answers 408, 409, 429 and 5xx (with their ``Retry-After``). Not tried again are
    other refusals, guardrail tripwires, too many turns, our own errors, and every exception
    that nobody classified: it may be a mistake in a tool, which repeating does not mend. The
    SDK raises what went wrong in a tool from the tool's own exception, so causes are looked
    at too.

    A host may name a function of the same form in ``AGENTIC_DJANGO_CLASSIFY_ERROR``, and call
    this one for what it does not know.
    """
    for cause in _chain(error):
        for kinds, judge in _RULES:
            if isinstance(cause, kinds):
                return judge(cause)
    return RetryDecision("internal")


def user_message(error: BaseException) -> dict[str, str]:
    """Return what a person may read of an exception in a step: its code, and a sentence."""
    if isinstance(error, UserError):
        return {"code": error.code, "error": str(error)}
    code = "timed_out" if isinstance(error, StepTimeoutError) else classify(error).code
    return {"code": code, "error": str(message_for_code(code))}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__


def _ours(error: Any) -> RetryDecision:
    return RetryDecision(error.code if error.code in MESSAGES else "internal")


def _status(error: Any) -> RetryDecision:
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
    """Return the exceptions of HTTP clients that mean what a provider's connection errors do."""
    names = ("NetworkError", "TimeoutException", "RemoteProtocolError")
    clients = [client for client in ("httpx", "httpx2") if find_spec(client)]
    return tuple(import_string(f"{client}.{name}") for client in clients for name in names)


def _fixed(verdict: RetryDecision) -> Callable[[Any], RetryDecision]:
    return lambda error: verdict


_RULES: list[tuple[Any, Callable[[Any], RetryDecision]]] = [
    (AgenticError, _ours),
    (MaxTurnsExceeded, _fixed(RetryDecision("max_turns"))),
    (_TRIPWIRES, _fixed(RetryDecision("guardrail"))),
    (ToolTimeoutError, _fixed(RetryDecision("tool_timed_out"))),
    (openai.APIStatusError, _status),
    (openai.APIConnectionError, _fixed(RetryDecision("provider_unreachable", retry=True))),
    ((OperationalError, InterfaceError), _fixed(RetryDecision("database_away", retry=True))),
    ((ConnectionError, *_unreachable()), _fixed(RetryDecision("provider_unreachable", retry=True))),
]
