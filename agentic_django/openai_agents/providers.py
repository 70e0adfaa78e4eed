"""The model providers that a process shares, and models by name."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import agents
import httpx2
import openai
from agents.models.interface import Model
from agents.models.multi_provider import MultiProvider

from agentic_django.concurrency import event_loop
from agentic_django.concurrency.process_state import process
from agentic_django.conf import settings
from agentic_django.exceptions import BadSetting
from agentic_django.openai_agents.models import journaled_model
from agentic_django.openai_agents.sdk_internals import (
    get_default_openai_client,
    get_default_openai_key,
)

__all__ = ["get_model", "shared_provider"]


def shared_provider() -> MultiProvider:
    """Return the process's own provider, so that its connections outlast a run.

    On a loop of a host's own it is a fresh one that keeps no connections: the SDK's client is
    shared by all loops, and its connections are of use on one.
    """
    loop = _running_loop()
    if loop is not None and not event_loop.is_process_loop(loop):
        return MultiProvider(openai_client=_client())
    return process.get(MultiProvider)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _client() -> openai.AsyncOpenAI | None:
    """Return a client without connections; None if the host has one, or no key for OpenAI."""
    if get_default_openai_client() is not None:
        return None
    limits = httpx2.Limits(max_keepalive_connections=0)
    with suppress(openai.OpenAIError):
        return openai.AsyncOpenAI(
            api_key=get_default_openai_key(),
            http_client=openai.DefaultAsyncHttpx2Client(limits=limits),
        )
    return None


def get_model(name: str | Model | None = None) -> Model:
    """Return a model, journaled: an instance, or one by name (``litellm/…`` names others).

    Without a name it is ``AGENTIC_DJANGO_DEFAULT_MODEL``; raises BadSetting without that.
    """
    if isinstance(name, Model):
        return journaled_model(name)
    name = name or settings.DEFAULT_MODEL
    if name is None:
        raise BadSetting("Name a model, or set AGENTIC_DJANGO_DEFAULT_MODEL.")
    try:
        return journaled_model(shared_provider().get_model(name))
    except (agents.UserError, ImportError) as error:
        raise BadSetting(f"There is no model {name!r}: {error}") from error
