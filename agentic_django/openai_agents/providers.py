"""Keeps the model provider that all runs of a process share, and finds models by name."""

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
from agentic_django.openai_agents.journaled_models import journaled_model
from agentic_django.openai_agents.sdk_internals import (
    get_default_openai_client,
    get_default_openai_key,
)

__all__ = ["get_model", "shared_provider"]


def shared_provider() -> MultiProvider:
    """Return the provider of the process, which keeps connections open between runs.

    On an event loop of the host, return a new provider that keeps no connections open. The SDK
    shares one client between all event loops, but a connection works on only one loop.
    """
    loop = _running_loop()
    if loop is not None and not event_loop.is_process_loop(loop):
        return MultiProvider(openai_client=_client_without_keepalive())
    return process.get(MultiProvider)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _client_without_keepalive() -> openai.AsyncOpenAI | None:
    """Return a client that keeps no connections open, or None for the SDK's default.

    The default is used if the host has set a client, or has no API key for OpenAI.
    """
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
    """Return a model that records its responses, by name or as a wrapper of a model object.

    A name may have a provider prefix (``litellm/…``). None means ``AGENTIC_DJANGO_DEFAULT_MODEL``.
    Raises BadSetting if the model is unknown, or if neither names a model.
    """
    if isinstance(name, Model):
        return journaled_model(name, is_direct=True)
    name = name or settings.DEFAULT_MODEL
    if name is None:
        raise BadSetting("Name a model, or set AGENTIC_DJANGO_DEFAULT_MODEL.")
    try:
        return journaled_model(shared_provider().get_model(name), is_direct=True)
    except (agents.UserError, ImportError) as error:
        raise BadSetting(f"Unknown model {name!r}: {error}") from error
