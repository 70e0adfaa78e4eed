"""Reads the parts of an exception that say what a model provider answered.

Clients and frameworks have different exceptions for the same answer. They are read by their shape:
a status, a code, a message and headers, whatever class they have.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from math import isnan
from typing import Any

import openai
from agents.exceptions import ModelBehaviorError
from django.utils.http import parse_http_date_safe

__all__ = [
    "LONGEST_PAUSE",
    "ProviderAnswerError",
    "ProviderReply",
    "bounded_pause",
    "read_reply",
    "reported_error",
]

LONGEST_PAUSE = 3600.0
"""The longest pause, in seconds, that a provider may ask for."""

_PROVIDER_PACKAGES = {
    "anthropic",
    "cohere",
    "google",
    "groq",
    "huggingface_hub",
    "litellm",
    "mistralai",
    "ollama",
    "openai",
    "pydantic_ai",
    "together",
    "xai_sdk",
}
"""Packages whose exceptions with a status come from a model provider."""

_TERMINAL_EVENT = re.compile(r"terminal event `(?:response\.)?(\w+)`")
_CODE = re.compile(r"\b(?:code|reason)='?(\w+)")


class ProviderAnswerError(Exception):
    """A provider began to answer, and then reported an error or an incomplete answer."""

    def __init__(self, code: str, message: str = "") -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        """The provider's own code, such as ``server_error`` or ``max_output_tokens``."""


@dataclass(frozen=True, slots=True)
class ProviderReply:
    """The error that a provider reported.

    - ``status``: the HTTP status, or None if the error came within a response of status 200.
    - ``codes``: the codes and types of the error, in lower case.
    - ``text``: the message, in lower case.
    - ``after``: the seconds to wait that the provider asks for.
    - ``is_from_provider``: whether the exception is known to come from a model provider. A tool
      may raise an exception of the same shape about another service.
    """

    status: int | None
    codes: frozenset[str]
    text: str
    after: float
    is_from_provider: bool


def reported_error(event: Any) -> ProviderAnswerError | None:
    """Return the error for an event by which a stream ends without a complete answer, or None."""
    if event.type in ("error", "response.error"):
        return ProviderAnswerError(str(event.code or "server_error"), str(event.message or ""))
    if event.type == "response.failed":
        error = event.response.error
        code, message = _attribute(error, "code"), _attribute(error, "message")
        return ProviderAnswerError(str(code or "server_error"), str(message or ""))
    if event.type == "response.incomplete":
        reason = _attribute(event.response.incomplete_details, "reason")
        return ProviderAnswerError(str(reason or "max_output_tokens"), "The answer is incomplete.")
    return None


def read_reply(error: BaseException) -> ProviderReply | None:
    """Return what a provider said by an exception, or None if it does not have such a shape."""
    response = _attribute(error, "response")
    codes = frozenset(_codes(error, response))
    package = type(error).__module__.partition(".")[0]
    is_known = isinstance(error, ProviderAnswerError | openai.APIError | ModelBehaviorError)
    status = _status(error, response) or (_status_of_codes(codes) if is_known else None)
    if status is None and not codes and isinstance(error, openai.APIError):
        codes = frozenset({"server_error"})  # An error within an answer, without a code.
    if status is None and not (is_known and codes):
        return None
    return ProviderReply(
        status=status,
        codes=codes,
        text=str(error).lower(),
        after=_retry_after(error, response),
        is_from_provider=is_known or package in _PROVIDER_PACKAGES,
    )


def _attribute(value: Any, name: str) -> Any:
    """Return an attribute of an object or a key of a mapping; None if it cannot be read."""
    if isinstance(value, Mapping):
        return value.get(name)
    with suppress(Exception):  # A property of a foreign class may fail in any way.
        return getattr(value, name, None)
    return None


def _status(error: BaseException, response: Any) -> int | None:
    metadata = _attribute(response, "ResponseMetadata")  # botocore
    found = [
        *(_attribute(error, name) for name in ("status_code", "status", "http_status", "code")),
        *(_attribute(response, name) for name in ("status_code", "status")),
        _attribute(metadata, "HTTPStatusCode"),
    ]
    statuses = (value for value in found if isinstance(value, int) and 400 <= value < 600)
    return next(statuses, None)


def _status_of_codes(codes: Iterable[str]) -> int | None:
    """Return the status that a provider gives as a code of an error within an answer."""
    numbers = (int(code) for code in codes if code.isdecimal())
    return next((number for number in numbers if 400 <= number < 600), None)


def _codes(error: BaseException, response: Any) -> Iterator[str]:
    """Yield the codes and types that an error, its body and its nested errors contain."""
    if isinstance(error, ModelBehaviorError):
        event = _TERMINAL_EVENT.search(str(error))
        yield from _CODE.findall(str(error).lower()) if event else ()
        return
    body = _attribute(error, "body")
    parts = [error, body, _attribute(body, "error"), _attribute(response, "Error")]
    for part in parts:
        for name in ("code", "type", "status", "Code"):
            value = _attribute(part, name)
            if isinstance(value, str):
                yield value.lower()


def _retry_after(error: BaseException, response: Any) -> float:
    metadata = _attribute(response, "ResponseMetadata")
    own = _attribute(error, "retry_after")
    if isinstance(own, int | float):
        return bounded_pause(float(own))
    sources = (response, error)
    headers = [_attribute(each, "headers") for each in sources]
    for each in [*headers, _attribute(metadata, "HTTPHeaders")]:
        pause = _pause_of(each)
        if pause:
            return pause
    return 0.0


def _pause_of(headers: Any) -> float:
    if not callable(getattr(headers, "items", None)):
        return 0.0
    values = {str(name).lower(): str(value) for name, value in headers.items()}
    with suppress(ValueError):
        return bounded_pause(float(values.get("retry-after-ms", "")) / 1000)
    with suppress(ValueError):
        return bounded_pause(float(values.get("retry-after", "")))
    moment = parse_http_date_safe(values.get("retry-after", ""))
    return 0.0 if moment is None else bounded_pause(moment - time.time())


def bounded_pause(seconds: float) -> float:
    """Return a pause between 0 and the longest one."""
    return 0.0 if isnan(seconds) else min(max(0.0, seconds), LONGEST_PAUSE)
