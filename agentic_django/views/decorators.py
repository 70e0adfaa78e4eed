"""What a request passes before its view: method, login, size, CSRF; and who may use an agent."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Concatenate
from urllib.parse import urlsplit

from django.contrib.auth.views import redirect_to_login
from django.http import HttpRequest, HttpResponse
from django.middleware.csrf import CsrfViewMiddleware
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.translation import gettext as _
from django.views.decorators.csrf import csrf_exempt

from agentic_django import registry
from agentic_django.conf import load, settings
from agentic_django.exceptions import NotAllowed
from agentic_django.permissions import Viewer
from agentic_django.views import problems, schemas
from agentic_django.views.negotiation import Format, Request, format_of, sealed
from agentic_django.views.problems import Problem, Refused

__all__ = ["check_agent", "endpoint", "usable_agents"]

type View[**P] = Callable[Concatenate[Request, P], HttpResponse]


def endpoint[**P](*methods: str) -> Callable[[View[P]], Callable[..., HttpResponse]]:
    """Make a view answer these methods, for users, with errors in the caller's format."""

    def decorate(view: View[P]) -> Callable[..., HttpResponse]:
        @wraps(view)
        def answer(request: Request, *args: P.args, **kwargs: P.kwargs) -> HttpResponse:
            try:
                response = _admit(request, methods) or view(request, *args, **kwargs)
            except problems.TOLD as error:
                response = problems.answer(request, error)
            return sealed(response)

        # Django's middleware would read the whole body for the token before its length is
        # looked at; ``_admit`` makes the same check after that.
        return csrf_exempt(answer)

    return decorate


def _admit(request: Request, methods: tuple[str, ...]) -> HttpResponse | None:
    """Let a request through to its view, with ``request.viewer`` set; or answer it."""
    if request.method not in methods:
        raise Refused(_wrong_method(request, methods))
    request.viewer = Viewer.for_request(request)
    if not request.viewer.principal:
        return _login(request)
    schemas.check_length(request)
    _check_csrf(request)
    return None


def _wrong_method(request: Request, methods: tuple[str, ...]) -> Problem:
    allowed = ", ".join(methods)
    detail = _("%(method)s is not allowed here. Allowed: %(allowed)s.")
    names = {"method": request.method, "allowed": allowed}
    return Problem(405, "method_not_allowed", detail % names, headers={"Allow": allowed})


def _login(request: HttpRequest) -> HttpResponse:
    """Ask for a login, in the caller's format."""
    there = redirect_to_login(_return_address(request))
    match format_of(request):
        case Format.PAGE:
            return there
        case Format.FRAGMENT:
            return HttpResponse(status=401, headers={"HX-Redirect": there.url})
    headers = {"WWW-Authenticate": "Session"}
    raise Refused(Problem(401, "login_required", _("Log in first."), headers=headers))


def _return_address(request: HttpRequest) -> str:
    """Return the page to come back to: the one that was asked for, or was asked from."""
    if format_of(request) is Format.PAGE and request.method in ("GET", "HEAD"):
        return request.get_full_path()
    page = request.headers.get("HX-Current-URL") or request.headers.get("Referer", "")
    safe = url_has_allowed_host_and_scheme(page, request.get_host(), request.is_secure())
    return urlsplit(page)._replace(scheme="", netloc="").geturl() if safe else ""


class _Check(CsrfViewMiddleware):
    """Django's check, whose refusal is told in the caller's format."""

    def _reject(self, request: HttpRequest, reason: str) -> Any:
        raise Refused(Problem(403, "csrf", _("CSRF verification failed: %s") % reason))


def _checked(_request: HttpRequest) -> HttpResponse:
    return HttpResponse()


def _check_csrf(request: HttpRequest) -> None:
    if request.method not in ("GET", "HEAD"):
        schemas.parse_form(request)
        check = _Check(_checked)
        check.process_request(request)
        check.process_view(request, _checked, (), {})


def check_agent(request: HttpRequest, agent_key: str) -> None:
    """Raise UnknownAgent, or NotAllowed if ``AGENTIC_DJANGO_AGENT_ACCESS`` says no."""
    if agent_key not in registry.keys():  # noqa: SIM118 - a registry, no dict - a function of ours
        # The names of agents that are not theirs are not theirs either.
        raise registry.unknown_agent(agent_key, usable_agents(request))
    if not _may_use(request, agent_key):
        raise NotAllowed


def usable_agents(request: HttpRequest) -> list[str]:
    """Return the keys of the agents that this person may use, the default one first."""
    theirs = [key for key in registry.keys() if _may_use(request, key)]  # noqa: SIM118
    return sorted(theirs, key=lambda key: (key != settings.DEFAULT_AGENT_KEY, key))


def _may_use(request: HttpRequest, agent_key: str) -> bool:
    hook = settings.AGENT_ACCESS
    return hook is None or bool(load(hook)(request, agent_key))
