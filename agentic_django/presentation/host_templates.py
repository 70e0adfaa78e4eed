"""Finds the templates that a host wrote for one agent or one tool.

The names come from models and clients, so they are bounded in length, and a name without a template
never reaches Django's cached loader, which stores each name that it did not find.
"""

from __future__ import annotations

import re
from functools import lru_cache
from itertools import chain

from django.conf import settings as django_settings
from django.template import Engine, TemplateDoesNotExist

__all__ = ["MAX_NAME", "found"]

MAX_NAME = 64
"""The length of the names that may have a template of their own, in characters."""

_NAME = re.compile(rf"[^\W_][\w.:/-]{{0,{MAX_NAME - 1}}}", re.ASCII)


def found(folder: str, name: str) -> str:
    """Return the name of the template ``folder/name.html``; empty if it does not exist."""
    if not _NAME.fullmatch(name) or ".." in name:
        return ""
    template = f"{folder}/{name}.html"
    exists = _exists if django_settings.DEBUG else _exists_for_good
    return template if exists(Engine.get_default(), template) else ""


def _exists(engine: Engine, template: str) -> bool:
    """Whether a loader has a template. The cache of the cached loader is left out."""
    loaders = (getattr(loader, "loaders", [loader]) for loader in engine.template_loaders)
    for loader in chain.from_iterable(loaders):
        for origin in loader.get_template_sources(template):
            try:
                loader.get_contents(origin)
            except TemplateDoesNotExist:
                continue
            return True
    return False


_exists_for_good = lru_cache(maxsize=1024)(_exists)
