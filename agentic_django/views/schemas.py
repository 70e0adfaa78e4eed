"""What a request asks for: JSON or form bodies and query strings, as pydantic models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from annotated_types import Ge, Le
from django.http import HttpRequest
from django.utils.translation import gettext as _
from pydantic import BaseModel, BeforeValidator, ConfigDict, StringConstraints

from agentic_django import validation
from agentic_django.conf import settings
from agentic_django.exceptions import BadInput, InputTooLarge
from agentic_django.models import SESSION_KEY
from agentic_django.services import OnBusy
from agentic_django.views.problems import Problem, Refused

__all__ = [
    "FORMS",
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
    "SessionsQuery",
    "check_length",
    "parse_body",
    "parse_form",
    "parse_query",
]

FORMS = ("application/x-www-form-urlencoded", "multipart/form-data", "")


class Body(BaseModel):
    """What a body may hold: its fields, and no others."""

    model_config = ConfigDict(extra="forbid")


def _valid_input(value: Any) -> Any:
    try:
        return validation.validated_input(value)
    except BadInput as error:
        raise ValueError(error.errors["input"]) from None


class RunRequest(Body):
    """``POST runs/``."""

    input: Annotated[Any, BeforeValidator(_valid_input)]
    session_key: Annotated[str, StringConstraints(pattern=f"^{SESSION_KEY}$")] | None = None
    agent_key: str | None = None
    config: dict[str, Any] = {}
    context: dict[str, Any] = {}
    on_busy: OnBusy = "enqueue"
    show: Literal["run", "conversation"] = "run"


class CancelRequest(Body):
    """``POST runs/<uuid>/cancel/``: nothing to say."""


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
    """``POST sessions/<slug>/delete/``: nothing to say."""


class NewQuery(BaseModel):
    """``GET`` of the page for a new conversation."""

    agent: str = ""


class SessionsQuery(BaseModel):
    """``GET sessions/``; ``current`` is the key of the one that is looked at."""

    q: Annotated[str, StringConstraints(strip_whitespace=True, max_length=200)] = ""
    archived: bool = False
    page: Annotated[int, Ge(1), Le(10_000)] = 1
    current: str = ""


class EventsQuery(BaseModel):
    """``GET runs/<uuid>/events/``; more than 1000 at once are not given."""

    after: Annotated[int, Ge(0)] = 0
    limit: Annotated[int, Ge(1)] = 100
    visibility: Literal["user", "debug"] = "user"


class ItemsQuery(BaseModel):
    """``GET sessions/<slug>/items/``; more than 500 at once are not given."""

    limit: Annotated[int, Ge(1)] = 50


class TurnsQuery(BaseModel):
    """``GET sessions/<slug>/turns/``; ``after`` is the place of the last turn that is there."""

    after: Annotated[int, Ge(0), Le(2**31 - 1)] = 0


class StreamQuery(BaseModel):
    """``GET …/stream/``; ``after`` is where a reader stands that cannot send Last-Event-ID."""

    format: Literal["html", "json"] = "html"
    after: str = ""
    visibility: Literal["user", "debug"] = "user"


def parse_query[M: BaseModel](request: HttpRequest, model: type[M]) -> M:
    """Return the query string as a model; parameters that it does not know are ignored."""
    known = {name: v for name, v in request.GET.lists() if name in model.model_fields}
    return validation.validated(model, _single(known), strict=False)


def parse_body[M: BaseModel](request: HttpRequest, model: type[M]) -> M:
    """Return the body as a model; raises BadInput, InputTooLarge or Refused (415)."""
    if request.content_type == "application/json":
        data, is_form = _json(request), False
    elif request.content_type in FORMS:
        data, is_form = _form(request, model), True
    else:
        raise Refused(_unsupported(request.content_type or ""))
    validation.check_json(data)
    return validation.validated(model, data, strict=not is_form)


def _unsupported(content_type: str) -> Problem:
    detail = (
        _("The content type %r is not supported. Send application/json or a form.") % content_type
    )
    return Problem(415, "unsupported_media_type", detail)


def check_length(request: HttpRequest) -> None:
    """Raise InputTooLarge by the announced length, before anything is read."""
    length = request.META.get("CONTENT_LENGTH") or "0"
    if not (length.isascii() and length.isdigit()):
        raise BadInput(_("Content-Length is not a number."))
    _check_bytes(int(length[:20]))


def _check_bytes(size: int) -> None:
    most = settings.MAX_INPUT_BYTES
    if size > most:
        text = _("The request has %(size)s bytes. The limit is %(most)s.")
        raise InputTooLarge(text % {"size": size, "most": most})


def _json(request: HttpRequest) -> Any:
    _check_bytes(len(request.body))  # A chunked body has no announced length.
    try:
        text = request.body.decode() or "{}"
    except UnicodeDecodeError as error:
        raise BadInput(_("The body is not UTF-8.")) from error
    return _parsed(text)


def _parsed(text: str, field: str = "(body)") -> Any:
    try:
        data = json.loads(text, object_pairs_hook=_once)
    except BadInput:
        raise
    except RecursionError:
        raise BadInput(errors={field: _("The value is nested too deeply.")}) from None
    except ValueError as error:  # Not only JSONDecodeError: also numbers of too many digits.
        text = _("Invalid JSON: %(why)s.") % {"why": error}
        raise BadInput(errors={field: text}) from None
    if not isinstance(data, dict):
        raise BadInput(errors={field: _("Send a JSON object.")})
    return data


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _value in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        validation.check_json(twice, _("(field name)"))
        raise BadInput(errors={twice: _("This field is given more than once.")})
    return found


def parse_form(request: HttpRequest) -> None:
    """Parse a form's body, so that what is wrong with it is raised here."""
    if request.content_type == "application/x-www-form-urlencoded":
        _check_bytes(len(request.body))
    try:
        request.POST  # noqa: B018 - parsing is its effect
    except (LookupError, UnicodeError) as error:  # A charset that is no encoding of text.
        raise BadInput(_("The charset of the form is unknown.")) from error


def _form(request: HttpRequest, model: type[BaseModel]) -> dict[str, Any]:
    lists = {name: values for name, values in request.POST.lists() if any(values)}
    lists.pop("csrfmiddlewaretoken", None)
    if request.FILES:
        raise BadInput(errors=dict.fromkeys(request.FILES, _("Files are not accepted here.")))
    return {name: _read(model, name, value) for name, value in _single(lists).items()}


def _read(model: type[BaseModel], name: str, value: str) -> Any:
    """Return a form's value; objects are given as JSON in forms."""
    known = model.model_fields.get(name)
    return _parsed(value, name) if known and known.annotation == dict[str, Any] else value


def _single(lists: Mapping[str, Any]) -> dict[str, str]:
    text = _("This field is given more than once.")
    twice = {name: text for name, values in lists.items() if len(values) > 1}
    if twice:
        raise BadInput(errors=twice)
    return {name: values[0] for name, values in lists.items()}
