"""The tests' host project with htmx 4 in its pages."""

from functools import partial

from django_htmx.jinja import htmx_script

from tests.asgi import application

__all__ = ["application"]

from agentic_django.templatetags import agentic_django_tags

agentic_django_tags.htmx_script = partial(htmx_script, version=4)
