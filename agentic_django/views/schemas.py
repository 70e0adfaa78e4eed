"""Parses JSON bodies, forms and query strings into pydantic models.

The models define fields and types. Services validate the input and the options of a run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal
from uuid import UUID

from annotated_types import Ge, Le
from django.http import HttpRequest
from django.utils.translation import gettext as _
from pydantic import BaseModel, ConfigDict, StringConstraints

from agentic_django import validation
from agentic_django.conf import settings
from agentic_django.exceptions import BadInput, InputTooLarge
from agentic_django.services import OnBusy
from agentic_django.views.problems import Problem, RequestRefused

__all__ = [
    "FORM_TYPES",
    "ArchiveRequest",
    "Body",
    "CancelRequest",
    "DeleteRequest",
    "EventsQuery",
    "ItemsQuery",
    "NewQuery",
    "RenameRequest",
    "RetryRequest",
    "RunRequest",
    "RunsQuery",
    "SessionsQuery",
    "check_length",
    "parse_body",
    "parse_form",
    "parse_query",
    "single_values",
]

FORM_TYPES = ("application/x-www-form-urlencoded", "multipart/form-data", "")


class Body(BaseModel):
    """A body, which may have no other fields."""

    model_config = ConfigDict(extra="forbid")


class RunRequest(Body):
    """``POST runs/``. The service validates the input, the session key and the options."""

    input: Any
    session_key: str | None = None
    agent_key: str | None = None
    config: dict[str, Any] = {}
    context: dict[str, Any] = {}
    on_busy: OnBusy = "enqueue"
    show: Literal["run", "conversation"] = "run"


type Status = Literal[
    "pending", "running", "waiting", "completed", "failed", "cancelled", "timed_out"
]


class RunsQuery(BaseModel):
    """``GET runs/``; a response has at most 100 runs."""

    session_key: str = ""
    status: Status | None = None
    before: UUID | None = None
    limit: Annotated[int, Ge(1)] = 20


class CancelRequest(Body):
    """``POST runs/<uuid>/cancel/``: no fields."""


class RetryRequest(Body):
    """``POST runs/<uuid>/retry/``."""

    start_again: bool = False


class RenameRequest(Body):
    """``POST sessions/<slug>/rename/``."""

    title: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=255)]


class ArchiveRequest(Body):
    """``POST sessions/<slug>/archive/``."""

    archived: bool = True


class DeleteRequest(Body):
    """``POST sessions/<slug>/delete/``: no fields."""


class NewQuery(BaseModel):
    """``GET`` of the page of a new conversation."""

    agent: str = ""


class SessionsQuery(BaseModel):
    """``GET sessions/``; ``current`` is the key of the conversation that the page shows."""

    q: Annotated[str, StringConstraints(strip_whitespace=True, max_length=200)] = ""
    archived: bool = False
    page: Annotated[int, Ge(1), Le(10_000)] = 1
    current: str = ""


class EventsQuery(BaseModel):
    """``GET runs/<uuid>/events/``; a response has at most 1000 events."""

    after: Annotated[int, Ge(0)] = 0
    limit: Annotated[int, Ge(1)] = 100
    visibility: Literal["user", "debug"] = "user"


class ItemsQuery(BaseModel):
    """``GET sessions/<slug>/items/``; a response has at most 500 items."""

    limit: Annotated[int, Ge(1)] = 50


class TurnsQuery(BaseModel):
    """``GET sessions/<slug>/turns/``; ``after`` is the position of the last turn on the page."""

    after: Annotated[int, Ge(0), Le(2**31 - 1)] = 0


class StreamQuery(BaseModel):
    """``GET …/stream/``; ``after`` replaces the header Last-Event-ID."""

    format: Literal["html", "json"] = "html"
    after: str = ""
    visibility: Literal["user", "debug"] = "user"


def parse_query[M: BaseModel](request: HttpRequest, model: type[M]) -> M:
    """Return the query string as a model; unknown parameters are ignored."""
    known = {name: v for name, v in request.GET.lists() if name in model.model_fields}
    return validation.validated(model, single_values(known), strict=False)


def parse_body[M: BaseModel](request: HttpRequest, model: type[M]) -> M:
    """Return the body as a model; raise BadInput, InputTooLarge or RequestRefused (415)."""
    if request.content_type == "application/json":
        data, is_form = _parse_json_body(request), False
    elif not _has_body(request):  # Some servers and clients name a type then, some do not.
        data, is_form = {}, False
    elif request.content_type in FORM_TYPES:
        data, is_form = _parse_form_body(request, model), True
    else:
        text = _("The content type %r is not supported. Send application/json or a form.")
        detail = text % (request.content_type or "")
        raise RequestRefused(Problem(415, "unsupported_media_type", detail))
    validation.check_json(data)
    return validation.validated(model, data, strict=not is_form)


def _has_body(request: HttpRequest) -> bool:
    """Whether a request that is not JSON has a body; a form is parsed already, so not read."""
    return request.content_type in FORM_TYPES or bool(request.body)


def check_length(request: HttpRequest) -> None:
    """Raise InputTooLarge by the Content-Length, before the body is read."""
    length = request.META.get("CONTENT_LENGTH") or "0"
    if not (length.isascii() and length.isdigit()):
        raise BadInput(_("Content-Length is not a number."))
    _check_bytes(int(length[:20]))


def _check_bytes(size: int) -> None:
    most = settings.MAX_INPUT_BYTES
    if size > most:
        text = _("The request has %(size)s bytes. The limit is %(most)s.")
        raise InputTooLarge(text % {"size": size, "most": most})


def _parse_json_body(request: HttpRequest) -> Any:
    _check_bytes(len(request.body))  # A chunked body has no Content-Length.
    try:
        text = request.body.decode() or "{}"
    except UnicodeDecodeError as error:
        raise BadInput(_("The body is not UTF-8.")) from error
    return _parse_json_object(text)


def _parse_json_object(text: str, field: str = "(body)") -> Any:
    try:
        data = json.loads(text, object_pairs_hook=_unique_fields)
    except BadInput:
        raise
    except RecursionError:
        raise BadInput(errors={field: _("The value is nested too deeply.")}) from None
    except ValueError as error:  # Also for numbers with too many digits.
        text = _("Invalid JSON: %(why)s.") % {"why": error}
        raise BadInput(errors={field: text}) from None
    if not isinstance(data, dict):
        raise BadInput(errors={field: _("Send a JSON object.")})
    return data


def _unique_fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return the fields of a JSON object; raise BadInput for a field that is given twice."""
    found = dict(pairs)
    if len(found) < len(pairs):
        last = {name: index for index, (name, _value) in enumerate(pairs)}
        twice = next(name for index, (name, _value) in enumerate(pairs) if last[name] != index)
        validation.check_json(twice, _("(field name)"))
        raise BadInput(errors={twice: _("This field is given more than once.")})
    return found


def parse_form(request: HttpRequest) -> None:
    """Parse the body of a form, and raise BadInput if it is invalid."""
    if request.content_type == "application/x-www-form-urlencoded":
        _check_bytes(len(request.body))
    try:
        request.POST  # noqa: B018 - the access parses the body
    except (LookupError, UnicodeError) as error:  # The charset is not a text encoding.
        raise BadInput(_("The charset of the form is unknown.")) from error


def _parse_form_body(request: HttpRequest, model: type[BaseModel]) -> dict[str, Any]:
    """Return the fields of a form. Forms give objects as JSON."""
    lists = {name: values for name, values in request.POST.lists() if any(values)}
    lists.pop("csrfmiddlewaretoken", None)
    if request.FILES:
        raise BadInput(errors=dict.fromkeys(request.FILES, _("Files are not accepted here.")))
    data: dict[str, Any] = {**single_values(lists)}
    for name, field in model.model_fields.items():
        if name in data and field.annotation == dict[str, Any]:
            data[name] = _parse_json_object(data[name], name)
    return data


def single_values(lists: Mapping[str, Any]) -> dict[str, str]:
    """Return the only value of each field; raise BadInput for a field that is given twice."""
    text = _("This field is given more than once.")
    twice = {name: text for name, values in lists.items() if len(values) > 1}
    if twice:
        raise BadInput(errors=twice)
    return {name: values[0] for name, values in lists.items()}
