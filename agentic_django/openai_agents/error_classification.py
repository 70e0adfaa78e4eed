"""Decides the error code of an exception, and whether its run is retried.

The first rule of ``_RULES``, or else of ``_PROVIDER_RULES``, that matches the exception or one of
its causes decides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from importlib.util import find_spec
from typing import Any

import agents
import openai
from agents.exceptions import MaxTurnsExceeded, ModelBehaviorError, ToolTimeoutError
from django.db import InterfaceError, OperationalError
from django.utils.module_loading import import_string

from agentic_django.conf import load, settings
from agentic_django.exceptions import (
    MESSAGES,
    AgenticError,
    StepTimeoutError,
    UserError,
    message_for_code,
)
from agentic_django.openai_agents.provider_errors import (
    ProviderReply,
    bounded_pause,
    read_reply,
)
from agentic_django.signals import logger

__all__ = ["RetryDecision", "classify", "decide_retry", "is_database_away", "user_message"]

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
        code, after = str(decision.code)[:_LONGEST_CODE], bounded_pause(float(decision.after))
        return RetryDecision(code, bool(decision.retry), after)
    except Exception:  # noqa: BLE001 - the host's function may fail in any way
        logger.exception("AGENTIC_DJANGO_CLASSIFY_ERROR, %s, failed", hook)
        return classify(error)


def classify(error: BaseException) -> RetryDecision:
    """Return the app's own decision about an exception.

    Connection errors and timeouts of a provider, the database or httpx are retried, and so are
    errors that say that a provider is busy, after their ``Retry-After``. Exceptions of other
    frameworks are judged by their status and code. Other exceptions are not retried: refusals,
    guardrail tripwires, too many turns, the app's own errors, and unknown exceptions, which may
    come from a mistake in a tool. The SDK raises an error in a tool from the tool's own exception,
    so causes are examined too.

    A host may name a function with the same signature in ``AGENTIC_DJANGO_CLASSIFY_ERROR``. It can
    call this function for exceptions that it does not handle.
    """
    causes = list(_chain(error))
    decision = next(filter(None, map(_judge, causes)), RetryDecision("internal"))
    if not decision.retry or decision.after:
        return decision
    # A framework may raise its own error, without headers, from its client's.
    replies = filter(None, map(read_reply, causes))
    return replace(decision, after=max((reply.after for reply in replies), default=0.0))


_QUERY_CANCELLED = "57014"


def is_database_away(error: BaseException) -> bool:
    """Return whether an error says that the database cannot serve anybody now.

    It does not say so if it is about one statement: PostgreSQL cancelled it after a
    ``statement_timeout``, or SQLite cannot execute it.
    """
    if not isinstance(error, OperationalError | InterfaceError):
        return False
    cause = error.__cause__
    of_statement = getattr(cause, "sqlstate", None) == _QUERY_CANCELLED
    return not of_statement and getattr(cause, "sqlite_errorname", "") != "SQLITE_ERROR"


def user_message(error: BaseException) -> dict[str, str]:
    """Return the error code and the user's message for an exception in a step."""
    if isinstance(error, UserError):
        return {"code": error.code, "error": str(error)}
    code = "timed_out" if isinstance(error, StepTimeoutError) else classify(error).code
    return {"code": code, "error": str(message_for_code(code))}


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """Yield an exception and its causes, each once."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        yield error
        seen.add(id(error))
        error = error.__cause__


def _judge(error: BaseException) -> RetryDecision | None:
    for kinds, judge in _RULES:
        if isinstance(error, kinds):
            return judge(error)
    if type(error) is openai.OpenAIError:  # The client has no key.
        return _NOT_CONFIGURED
    return _from_provider(error) or _from_refused_answer(error)


def _from_app_error(error: Any) -> RetryDecision:
    return RetryDecision(error.code if error.code in MESSAGES else "internal")


def _from_refused_answer(error: BaseException) -> RetryDecision | None:
    """Return why the SDK refused an answer, or None for other errors. It says so only in words."""
    text = str(error) if isinstance(error, ModelBehaviorError) else ""
    if text.startswith("Tool ") and ("not found in agent" in text or "is currently" in text):
        return RetryDecision("unknown_tool")
    is_invalid = text.startswith("Invalid JSON when parsing")
    return RetryDecision("invalid_output") if is_invalid else None


@dataclass(frozen=True, slots=True)
class _ProviderRule:
    """A row of the table: it applies if a code, a status or the words match."""

    decision: RetryDecision
    codes: frozenset[str] = frozenset()
    statuses: frozenset[int] = frozenset()
    words: str = ""
    words_with: frozenset[int | None] = frozenset({None, 400, 402, 403, 413, 422})
    """The statuses with which the words count."""
    is_within_answer: bool = False
    """Whether the row applies only to an answer that had begun, with the status 200."""

    def matches(self, reply: ProviderReply) -> bool:
        """Whether this row applies to what a provider said."""
        if self.is_within_answer and reply.status is not None:
            return False
        if self.codes & reply.codes:
            return True
        has_words = reply.is_from_provider and reply.status in self.words_with
        if has_words and self.words and re.search(self.words, reply.text):
            return True
        statuses = self.statuses if reply.is_from_provider else self.statuses & _TRANSIENT
        return reply.status in statuses


_TRANSIENT = {408, 425, 429, 502, 503, 504, 529}
"""The statuses that count whoever sent them. Others may be a mistake in a tool."""

_NOT_CONFIGURED = RetryDecision("not_configured")
_BUSY = RetryDecision("provider_busy", retry=True)

_PROVIDER_RULES = [
    _ProviderRule(
        RetryDecision("answer_cut_off"),
        codes=frozenset({"max_output_tokens", "max_tokens"}),
        is_within_answer=True,
    ),
    _ProviderRule(
        RetryDecision("answer_withheld"),
        codes=frozenset({"content_filter"}),
        is_within_answer=True,
    ),
    _ProviderRule(
        RetryDecision("input_too_long"),
        codes=frozenset({"context_length_exceeded", "context_window_exceeded"}),
        words=(
            r"context.?(length|window)|maximum context|prompt is too long|input is too long"
            r"|too many (input )?tokens|(input|prompt) tokens? .*exceed|reduce the length"
            r"|exceeds? the (maximum|max) (number of|allowed) (input )?tokens"
        ),
    ),
    _ProviderRule(
        _NOT_CONFIGURED,
        codes=frozenset(
            {
                "account_deactivated",
                "authentication_error",
                "billing_error",
                "billing_hard_limit_reached",
                "billing_not_active",
                "insufficient_quota",
                "invalid_api_key",
                "model_not_found",
                "permission_denied",
                "permission_error",
                "unauthenticated",
                "unsupported_country_region_territory",
            }
        ),
        words=r"credit balance is too low|insufficient (credits|balance|funds)|api key not valid",
    ),
    _ProviderRule(_NOT_CONFIGURED, statuses=frozenset({401, 402, 403, 404})),
    _ProviderRule(
        _BUSY,
        codes=frozenset(
            {
                "internal_error",
                "overloaded",
                "overloaded_error",
                "rate_limit_error",
                "rate_limit_exceeded",
                "server_error",
                "serviceunavailableexception",
                "slow_down",
                "throttling",
                "throttlingexception",
                "timeout",
                "vector_store_timeout",
            }
        ),
        statuses=frozenset({408, 409, 425, 429, *range(500, 600)}),
    ),
]
"""What providers say and what it means; the first row that applies decides.

Other errors of a provider are ``provider_refused``. See docs/explanation/provider-errors.md.
"""


def _from_provider(error: BaseException) -> RetryDecision | None:
    """Return the decision about what a provider said, or None if no provider said anything."""
    reply = read_reply(error)
    if reply is None:
        return None
    for rule in _PROVIDER_RULES:
        if rule.matches(reply):
            return replace(rule.decision, after=reply.after if rule.decision.retry else 0.0)
    return RetryDecision("provider_refused") if reply.is_from_provider else None


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
    (openai.LengthFinishReasonError, _fixed(RetryDecision("answer_cut_off"))),
    (openai.ContentFilterFinishReasonError, _fixed(RetryDecision("answer_withheld"))),
    (openai.APIConnectionError, _fixed(RetryDecision("provider_unreachable", retry=True))),
    ((OperationalError, InterfaceError), _fixed(RetryDecision("database_away", retry=True))),
    ((ConnectionError, *_unreachable()), _fixed(RetryDecision("provider_unreachable", retry=True))),
]
