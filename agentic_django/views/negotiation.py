"""In which format a caller wants its answer."""

from __future__ import annotations

from enum import Enum

from django.http import HttpRequest, HttpResponse
from django.utils.cache import patch_vary_headers

from agentic_django.permissions import Viewer

__all__ = ["Format", "Request", "format_of", "sealed"]

JSON_TYPES = ("application/json", "application/problem+json")
WHOLE_PAGES = ("HX-Boosted", "HX-History-Restore-Request")


class Request(HttpRequest):
    """A request that passed ``access.endpoint``."""

    viewer: Viewer


class Format(Enum):
    """What the answer is made of."""

    JSON = "json"
    FRAGMENT = "fragment"
    PAGE = "page"


def format_of(request: HttpRequest) -> Format:
    """Return the caller's format: HTMX by its header, the rest by ``Accept``, else JSON.

    A boosted link and HTMX's request for a page that fell out of its history want whole pages.
    """
    if request.headers.get("HX-Request") == "true":
        whole = any(name in request.headers for name in WHOLE_PAGES)
        return Format.PAGE if whole else Format.FRAGMENT
    preferred = request.get_preferred_type([*JSON_TYPES, "text/html"])
    return Format.PAGE if preferred == "text/html" else Format.JSON


def sealed(response: HttpResponse) -> HttpResponse:
    """Say what an answer depends on, and that nobody else may be given it."""
    patch_vary_headers(response, ("Accept", "HX-Request", "Cookie"))
    response.headers.setdefault("Cache-Control", "private, no-store")
    return response
