"""Renders errors in the format that the requester expects; JSON follows RFC 9457."""

from __future__ import annotations

import sqlite3
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
from django.db import InterfaceError, OperationalError, connections
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse, UnreadablePostError
from django.http.multipartparser import MultiPartParserError
from django.utils.translation import gettext as _
from django.utils.translation import gettext_lazy

from agentic_django.conf import settings
from agentic_django.exceptions import (
    AgenticError,
    BadInput,
    Conflict,
    InputTooLarge,
    NotAllowed,
    NotSerializable,
    RateLimited,
    UnknownAgent,
)
from agentic_django.views.negotiation import Format, format_of
from agentic_django.views.rendering import render

__all__ = [
    "DATABASE_ERRORS",
    "HANDLED_ERRORS",
    "STATUS_BY_ERROR",
    "Problem",
    "RequestRefused",
    "database_away",
    "is_database_away",
    "problem_of",
    "render_error",
]

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
    503: gettext_lazy("Service Unavailable"),
}


@dataclass(frozen=True, slots=True)
class Problem:
    """An error as the requester sees it."""

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
        """The problem details of RFC 9457. ``code`` and ``errors`` are extensions."""
        document = {"type": "about:blank", "title": self.title, "status": self.status}
        document |= {"detail": self.detail, "code": self.code}
        errors = [{"field": name, "detail": text} for name, text in self.errors.items()]
        return {**document, "errors": errors} if errors else document


class RequestRefused(Exception):
    """The request is refused with a problem."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.detail)
        self.problem = problem


STATUS_BY_ERROR: dict[type[Exception], tuple[int, str]] = {
    InputTooLarge: (413, InputTooLarge.code),
    BadInput: (400, BadInput.code),
    UnknownAgent: (400, UnknownAgent.code),
    NotSerializable: (400, NotSerializable.code),
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
"""Status and code of the errors whose text the requester may read, subclasses first."""

DATABASE_ERRORS = (OperationalError, InterfaceError)
RETRY_SECONDS = 5

HANDLED_ERRORS: tuple[type[Exception], ...] = (RequestRefused, *STATUS_BY_ERROR)
"""The errors that become a response. Any other error is a bug, and Django reports it."""


def problem_of(error: Exception) -> Problem:
    """Return the problem that describes a handled error."""
    if isinstance(error, RequestRefused):
        return error.problem
    status, code = next(pair for kind, pair in STATUS_BY_ERROR.items() if isinstance(error, kind))
    detail = str(error) or _("The request cannot be accepted.")
    match error:
        case Http404():
            detail = _("This does not exist, or you do not have access to it.")
            return Problem(status, code, detail)
        case UnknownAgent():
            return Problem(status, code, detail, errors={"agent_key": str(error)})
        case RateLimited():
            return Problem(status, code, detail, headers={"Retry-After": str(error.retry_after)})
        case BadInput():
            return Problem(status, error.code, detail, errors=error.errors)
        case AgenticError():
            return Problem(status, error.code, detail)
    return Problem(status, code, detail)


def is_database_away(error: Exception) -> bool:
    """Whether a database error says that the database is locked, full or cannot be reached."""
    code: int | None = getattr(error.__cause__, "sqlite_errorcode", None)
    # SQLite also raises OperationalError for wrong statements, such as those for missing tables.
    return isinstance(error, DATABASE_ERRORS) and code != sqlite3.SQLITE_ERROR


def database_away() -> RequestRefused:
    """Return the error for a request that the database cannot serve now; roll back its changes."""
    for connection in connections.all(initialized_only=True):
        if connection.settings_dict["ATOMIC_REQUESTS"] and connection.in_atomic_block:
            connection.set_rollback(True)
    detail = _("The database is busy or cannot be reached. Retry in a few seconds.")
    headers = {"Retry-After": str(RETRY_SECONDS)}
    return RequestRefused(Problem(503, "database_away", detail, headers=headers))


def render_error(request: HttpRequest, error: Exception) -> HttpResponse:
    """Return the response to a request that ended with a handled error."""
    problem = problem_of(error)
    status = problem.status
    match format_of(request):
        case Format.JSON:
            document = {**problem.document, "instance": request.path}
            kind = "application/problem+json"
            response: HttpResponse = JsonResponse(document, status=status, content_type=kind)
        case Format.FRAGMENT:
            template = "agentic_django/partials/problem.html"
            # Context processors of the project may query the database.
            visible = None if status == 503 else request
            response = render(visible, template, {"problem": problem}, status=status)
        case Format.PAGE:
            context = {"problem": problem, "base_template": settings.BASE_TEMPLATE}
            response = render(request, "agentic_django/problem.html", context, status=status)
    for name, value in problem.headers.items():
        response.headers[name] = value
    return response
