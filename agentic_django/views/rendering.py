"""Renders templates as responses that can be encoded, whatever text is in them."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest, HttpResponse
from django.template.loader import render_to_string

from agentic_django.serialization import printable

__all__ = ["render"]


def render(
    request: HttpRequest | None, template: str, context: dict[str, Any], status: int = 200
) -> HttpResponse:
    """Return a rendered template. A lone surrogate, which UTF-8 does not have, is replaced.

    Models and clients write half of a surrogate pair at times, and a template shows it unchanged.
    """
    return HttpResponse(printable(render_to_string(template, context, request)), status=status)
