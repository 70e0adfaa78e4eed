"""Chooses the format of a response: JSON, a fragment for HTMX, or a page."""

from __future__ import annotations

from enum import Enum

from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.cache import patch_vary_headers

from agentic_django.permissions import Viewer

__all__ = ["Format", "Request", "format_of", "mark_private", "redirect_after_post"]

JSON_TYPES = ("application/json", "application/problem+json")
FULL_PAGE_HEADERS = ("HX-Boosted", "HX-History-Restore-Request")


class Request(HttpRequest):
    """A request that ``decorators.endpoint`` admitted."""

    viewer: Viewer


class Format(Enum):
    """The format of a response."""

    JSON = "json"
    FRAGMENT = "fragment"
    PAGE = "page"


def format_of(request: HttpRequest) -> Format:
    """Return the format that the requester expects.

    HTMX is recognised by its header, other clients by ``Accept``. The default is JSON. HTMX expects
    whole pages for boosted links and when it restores its history.
    """
    if request.headers.get("HX-Request") == "true":
        is_page = any(name in request.headers for name in FULL_PAGE_HEADERS)
        return Format.PAGE if is_page else Format.FRAGMENT
    preferred = request.get_preferred_type([*JSON_TYPES, "text/html"])
    return Format.PAGE if preferred == "text/html" else Format.JSON


def redirect_after_post(request: HttpRequest, url: str) -> HttpResponse:
    """Redirect a browser or HTMX to the page that shows the change."""
    if format_of(request) is Format.FRAGMENT:
        return HttpResponse(status=204, headers={"HX-Redirect": url})
    return HttpResponseRedirect(url, status=303)


def mark_private(response: HttpResponse) -> HttpResponse:
    """Set the headers that keep caches from giving a response to other users or formats."""
    patch_vary_headers(response, ("Accept", "HX-Request", "Cookie"))
    response.headers.setdefault("Cache-Control", "private, no-store")
    return response
