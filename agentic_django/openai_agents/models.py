"""Models that record their responses, and replay those that are recorded."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from agents.items import ModelResponse
from agents.models.interface import Model, ModelProvider

from agentic_django.concurrency import event_loop
from agentic_django.engine import drafts, events
from agentic_django.engine.events import EventType
from agentic_django.engine.journal import CallResult, short_key
from agentic_django.models import StepCheckpoint
from agentic_django.openai_agents import conversion, pricing
from agentic_django.openai_agents.call_scope import CallScope, current_scope
from agentic_django.openai_agents.sdk_internals import DelegatingModel

__all__ = ["JournaledModel", "JournaledProvider", "ModelCall", "journaled_model"]

Kind = StepCheckpoint.Kind


class JournaledProvider(ModelProvider):
    """A host's provider, whose models are journaled."""

    def __init__(self, inner: ModelProvider) -> None:
        self.inner = inner

    def get_model(self, model_name: str | None) -> Model:
        """Return the inner provider's model, journaled."""
        return journaled_model(self.inner.get_model(model_name))


def journaled_model(model: Model) -> Model:
    """Return a model that records its responses, and replays those that are recorded."""
    return model if isinstance(model, JournaledModel) else JournaledModel(model)


class JournaledModel(DelegatingModel):
    """A host's model that records its responses."""

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        """Return the recorded response, or ask the inner model and record what it says."""
        call = ModelCall.of(args, kwargs, self.inner)
        if call is None:
            return await self.inner.get_response(*args, **kwargs)
        recorded = call.recorded()
        if recorded is not None:
            return recorded
        with call.being_made():
            response = await self.inner.get_response(*args, **kwargs)
            await call.record(response)
        return response

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Stream the recorded response as one event, or the inner model's.

        The latter is recorded before its last event is passed on.
        """
        call = ModelCall.of(args, kwargs, self.inner)
        recorded = call.recorded() if call else None
        if recorded is not None:
            yield conversion.replay_event(recorded)
            return
        items: list[Any] = []
        event: Any
        with call.being_made() if call else nullcontext():
            async for event in self.inner.stream_response(*args, **kwargs):
                if event.type == "response.output_item.done":
                    items.append(event.item)
                elif call and event.type in _TEXTS:
                    call.draft.add(event.delta, event.output_index)
                if call and event.type == "response.completed":
                    await call.record(conversion.streamed_response(event, items))
                yield event


_TEXTS = ("response.output_text.delta", "response.refusal.delta")

MODEL_ARGUMENTS = (
    "system_instructions",
    "input",
    "model_settings",
    "tools",
    "output_schema",
    "handoffs",
    "tracing",
)


class ModelCall:
    """One call of a model within a scope."""

    def __init__(self, scope: CallScope, asked: dict[str, Any], model: Any = None) -> None:
        self.scope = scope
        self.model = model
        self.handoffs = asked["handoffs"]
        self.fingerprint = conversion.fingerprint(
            asked["system_instructions"], asked["input"], asked["tools"]
        )
        self.key = scope.ask(self.fingerprint)
        self.draft = drafts.PartialMessage(scope.journal.run, short_key(self.key))
        self.draft.is_wanted = (
            not scope.is_nested and _is_text(asked.get("output_schema")) and events.shows_messages()
        )
        self.is_recorded = False
        self.began = time.monotonic()

    @classmethod
    def of(
        cls, args: tuple[Any, ...], kwargs: dict[str, Any], model: Any = None
    ) -> ModelCall | None:
        """Return the call with these arguments of ``Model.get_response``; None outside a run."""
        scope = current_scope()
        if scope is None:
            return None
        return cls(scope, {**dict(zip(MODEL_ARGUMENTS, args, strict=False)), **kwargs}, model)

    @contextmanager
    def being_made(self) -> Iterator[None]:
        """Ask the inner model in this block; if that fails, the key is free again."""
        try:
            yield
        finally:
            self.draft.drop()
            if not self.is_recorded:
                self.scope.give_back(self.key)

    def recorded(self) -> ModelResponse | None:
        """Return the response if it is recorded; tells of it if the question has changed."""
        row = self.scope.journal.find(self.key)
        if row is None:
            return None
        self.scope.responses += 1
        self.scope.arrived = False
        if row.fingerprint != self.fingerprint:
            text = f"The input of {self.key} is not the one whose recorded answer is used."
            self.scope.journal.defer(events.new_event(EventType.LOG, message=text, level="warning"))
        return conversion.load_response(row.result)

    async def record(self, response: ModelResponse) -> None:
        """Record the response and tell of it."""
        scope = self.scope
        if self.draft.has_begun:
            await event_loop.run_aside(self.draft.close)
        result = CallResult(
            key=self.key,
            kind=Kind.MODEL,
            name=scope.agent,
            value=conversion.dump_response(response),
            seconds=time.monotonic() - self.began,
            usage=conversion.usage_counts(response.usage)
            | pricing.cost(self.model, response.usage),
            fingerprint=self.fingerprint,
            has_draft=self.draft.is_written,
        )
        told = conversion.response_events(
            response, scope.agent, nested=scope.is_nested, handoffs=self.handoffs
        )
        if scope.arrived and not scope.is_nested:
            told.insert(0, events.new_event(EventType.AGENT_UPDATED, agent=scope.agent))
        await scope.journal.record(result, told)
        self.is_recorded = True
        scope.responses += 1
        scope.arrived = False


def _is_text(schema: Any) -> bool:
    """Whether a model's answer is for people; one that follows a schema is for programs."""
    return schema is None or schema.is_plain_text()
