"""With LoginRequiredMiddleware, callers without a login get the answer for their format."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import Client
from django.urls import reverse

from agentic_django.urls import urlpatterns

pytestmark = pytest.mark.django_db

ID = "0199a000-0000-7000-8000-000000000000"
VALUES = {"pk": ID, "session_key": "s", "call_id": "c", "number": 0}
LOGIN = "/admin/login/"


def address(pattern: Any) -> str:
    names = pattern.pattern.converters
    return reverse(f"agents:{pattern.name}", kwargs={name: VALUES[name] for name in names})


@pytest.fixture(autouse=True)
def login_is_required(settings: Any) -> None:
    middleware = "django.contrib.auth.middleware.LoginRequiredMiddleware"
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, middleware]


@pytest.mark.parametrize("pattern", urlpatterns, ids=lambda pattern: str(pattern.name))
def test_the_answer_has_the_format_of_the_caller(anonymous_client: Client, pattern: Any) -> None:
    url = address(pattern)
    allowed = anonymous_client.generic("PUT", url).headers["Allow"].split(", ")
    for method in allowed:
        for accept in ("application/json", "*/*", "text/event-stream"):
            response = anonymous_client.generic(method, url, headers={"Accept": accept})
            assert response.status_code == 401
            assert response.headers["Content-Type"] == "application/problem+json"
        response = anonymous_client.generic(method, url, headers={"HX-Request": "true"})
        assert response.status_code == 401
        assert response.headers["HX-Redirect"].startswith(LOGIN)
        response = anonymous_client.generic(method, url, headers={"Accept": "text/html"})
        assert response.status_code == 302
        assert response.headers["Location"].startswith(LOGIN)


def test_a_user_who_is_logged_in_is_answered(client: Client) -> None:
    assert client.get(reverse("agents:session-list")).status_code == 200
