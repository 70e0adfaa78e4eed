"""What went wrong, told in the caller's format; RFC 9457 for JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

from django.core.exceptions import (
    BadRequest,
    PermissionDenied,
    RequestDataTooBig,
    SuspiciousOperation,
)
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, UnreadablePostError
from django.http.multipartparser import MultiPartParserError
from django.shortcuts import render
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from agentic_django.conf import settings
from agentic_django.exceptions import (
    AgenticError,
    BadInput,
    Conflict,
    InputTooLarge,
    NotAllowed,
    RateLimited,
    UnknownAgent,
)
from agentic_django.views.negotiation import Format, format_of

__all__ = ["TOLD", "Problem", "Refused", "answer", "problem_of"]


_TITLES = {
    400: gettext_lazy("Bad Request"),
    401: gettext_lazy("Unauthorized"),
    403: gettext_lazy("Forbidden"),
    404: gettext_lazy("Not Found"),
    405: gettext_lazy("Method Not Allowed"),
    409: gettext_lazy("Conflict"),
    413: gettext_lazy("Content Too Large"),
    415: gettext_lazy("Unsupported Media Type"),
    429: gettext_lazy("Too Many Requests"),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as its caller is told of it."""

    status: int
    code: str
    detail: str
    errors: Mapping[str, str] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The status in words."""
        return str(_TITLES.get(self.status) or HTTPStatus(self.status).phrase)

    @property
    def document(self) -> dict[str, Any]:
        """The problem details of RFC 9457; ``code`` and ``errors`` are extensions."""
        told = {"type": "about:blank", "title": self.title, "status": self.status}
        told |= {"detail": self.detail, "code": self.code}
        errors = [{"field": name, "detail": text} for name, text in self.errors.items()]
        return {**told, "errors": errors} if errors else told


class Refused(Exception):
    """A request is answered with a problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


_STATUS: dict[type[Exception], tuple[int, str]] = {
    InputTooLarge: (413, InputTooLarge.code),
    BadInput: (400, BadInput.code),
    UnknownAgent: (400, UnknownAgent.code),
    NotAllowed: (403, NotAllowed.code),
    Conflict: (409, Conflict.code),
    RateLimited: (429, RateLimited.code),
    Http404: (404, "not_found"),
    PermissionDenied: (403, "forbidden"),
    RequestDataTooBig: (413, InputTooLarge.code),
    SuspiciousOperation: (400, BadInput.code),
    BadRequest: (400, BadInput.code),
    MultiPartParserError: (400, BadInput.code),
    UnreadablePostError: (400, BadInput.code),
}
"""Errors whose text is meant for the caller, the special ones first."""

TOLD: tuple[type[Exception], ...] = (Refused, *_STATUS)
"""All errors that become an answer. Any other is a bug, and Django's to report."""


def problem_of(error: Exception) -> Problem:
    """Return what the caller is told of an error."""
    if isinstance(error, Refused):
        return error.problem
    status, code = next(told for kind, told in _STATUS.items() if isinstance(error, kind))
    if isinstance(error, AgenticError):
        code = error.code
    return Problem(status, code, _detail(error), _errors(error), _headers(error))


def _detail(error: Exception) -> str:
    if isinstance(error, Http404):
        return _("This does not exist, or you do not have access to it.")
    return str(error) or _("The request cannot be accepted.")


def _errors(error: Exception) -> dict[str, str]:
    if isinstance(error, UnknownAgent):
        return {"agent_key": str(error)}
    return error.errors if isinstance(error, BadInput) else {}


def _headers(error: Exception) -> dict[str, str]:
    return {"Retry-After": str(error.retry_after)} if isinstance(error, RateLimited) else {}


def answer(request: HttpRequest, error: Exception) -> HttpResponse:
    """Return the answer to a request that ended with an error."""
    problem = problem_of(error)
    response = _ANSWERS[format_of(request)](request, problem)
    for name, value in problem.headers.items():
        response.headers[name] = value
    return response


def _document(request: HttpRequest, problem: Problem) -> HttpResponse:
    document = {**problem.document, "instance": request.path}
    return JsonResponse(document, status=problem.status, content_type="application/problem+json")


def _fragment(request: HttpRequest, problem: Problem) -> HttpResponse:
    template = "agentic_django/partials/problem.html"
    return render(request, template, {"problem": problem}, status=problem.status)


def _page(request: HttpRequest, problem: Problem) -> HttpResponse:
    context = {"problem": problem, "base_template": settings.BASE_TEMPLATE}
    return render(request, "agentic_django/problem.html", context, status=problem.status)


_ANSWERS = {Format.JSON: _document, Format.FRAGMENT: _fragment, Format.PAGE: _page}
