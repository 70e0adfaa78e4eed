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
    """Return the provider of the process, whose connections are kept between runs.

    On an event loop of the host's, return a new one that keeps no connections. The SDK shares one
    client between all event loops, but a connection can be used on one loop only.
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
    """Return a client that keeps no connections, or None for the SDK's default.

    The default is right if the host has set a client, or has no key for OpenAI.
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
    """Return a model that records its responses, by name or around an instance.

    A name may start with another provider (``litellm/…``). None means
    ``AGENTIC_DJANGO_DEFAULT_MODEL``. Raises BadSetting for an unknown model, or without a name.
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
