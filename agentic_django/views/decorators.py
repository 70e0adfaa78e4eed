"""Checks a request before its view: method, login, size and CSRF token."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate
from urllib.parse import urlsplit

from django.contrib.auth.decorators import login_not_required
from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import CsrfViewMiddleware
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.views.decorators.csrf import csrf_exempt

from agentic_django.permissions import Viewer
from agentic_django.views import problems, ratelimit, schemas
from agentic_django.views.negotiation import Format, Request, format_of, mark_private
from agentic_django.views.problems import Problem, RequestRefused

__all__ = ["endpoint"]

logger = logging.getLogger("agentic_django")

type View[**P] = Callable[Concatenate[Request, P], HttpResponse]


def endpoint[**P](*methods: str) -> Callable[[View[P]], Callable[..., HttpResponse]]:
    """Return a decorator for a view that accepts these methods, for logged-in users.

    Errors are rendered in the format that the requester expects.
    """

    def decorate(view: View[P]) -> Callable[..., HttpResponse]:
        @wraps(view)
        def respond(request: Request, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
            try:
                response = _admit(request, methods) or view(request, *args, **kwargs)
            except problems.HANDLED_ERRORS as error:
                response = problems.render_error(request, error)
                is_admitted = request.method == "POST" and hasattr(request, "viewer")
                if is_admitted and response.status_code in (400, 413):
                    ratelimit.count_refused(request.viewer)
            except problems.DATABASE_ERRORS as error:
                # Pages need the database themselves, so Django renders the error for browsers.
                if format_of(request) is Format.PAGE or not problems.is_database_away(error):
                    raise
                logger.warning("The database could not serve a request.", exc_info=True)
                response = problems.render_error(request, problems.database_away())
            return mark_private(response)

        # Django's middleware would read the whole body before ``_admit`` checks its length.
        # LoginRequiredMiddleware would redirect every caller; ``_admit`` knows their formats.
        return login_not_required(csrf_exempt(respond))

    return decorate


def _admit(request: Request, methods: tuple[str, ...]) -> HttpResponse | None:
    """Set ``request.viewer``, or return the response that sends the requester to the login."""
    if request.method not in methods:
        allowed = ", ".join(methods)
        detail = _("%(method)s is not allowed here. Allowed: %(allowed)s.")
        detail %= {"method": request.method, "allowed": allowed}
        headers = {"Allow": allowed}
        raise RequestRefused(Problem(405, "method_not_allowed", detail, headers=headers))
    request.viewer = Viewer.for_request(request)
    if not request.viewer.principal:
        return _require_login(request)
    if request.method == "POST":
        ratelimit.check_refused(request.viewer)
    schemas.check_length(request)
    _check_csrf(request)
    return None


def _require_login(request: HttpRequest) -> HttpResponse:
    """Redirect to the login, or raise RequestRefused for a JSON client.

    The login leads to the requested page, or back to the page that sent the request.
    """
    expected = format_of(request)
    if expected is Format.PAGE and request.method in ("GET", "HEAD"):
        target = request.get_full_path()
    else:
        page = request.headers.get("HX-Current-URL") or request.headers.get("Referer", "")
        safe = url_has_allowed_host_and_scheme(page, request.get_host(), request.is_secure())
        target = urlsplit(page)._replace(scheme="", netloc="").geturl() if safe else ""
    login = redirect_to_login(target)
    match expected:
        case Format.PAGE:
            return login
        case Format.FRAGMENT:
            return HttpResponse(status=401, headers={"HX-Redirect": login.url})
    headers = {"WWW-Authenticate": "Session"}
    raise RequestRefused(Problem(401, "login_required", _("Log in first."), headers=headers))


class _CsrfCheck(CsrfViewMiddleware):
    """Django's CSRF check, which raises RequestRefused instead of rendering a page."""

    def _reject(self, request: HttpRequest, reason: str) -> Any:
        raise RequestRefused(Problem(403, "csrf", _("CSRF verification failed: %s") % reason))


def _check_csrf(request: HttpRequest) -> None:
    """Raise RequestRefused for a POST without a valid token."""

    def view(_request: HttpRequest) -> HttpResponse:
        return HttpResponse()

    if request.method not in ("GET", "HEAD"):
        schemas.parse_form(request)
        check = _CsrfCheck(view)
        check.process_request(request)
        check.process_view(request, view, (), {})
