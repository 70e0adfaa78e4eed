"""Records the response of each model call once, and returns it in later attempts.

Each model of the host or of its provider is wrapped in a ``JournaledModel``. Outside a run the
wrapper does nothing.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

from agents.items import ModelResponse
from agents.models.interface import Model, ModelProvider
from openai.types.responses import ResponseOutputMessage

from agentic_django.concurrency import event_loop
from agentic_django.engine import drafts, events
from agentic_django.engine.events import EventType
from agentic_django.engine.journal import total_usage
from agentic_django.engine.journal_entries import CallResult, short_key
from agentic_django.models import StepCheckpoint
from agentic_django.openai_agents import conversion, pricing
from agentic_django.openai_agents.call_ids import CallIds
from agentic_django.openai_agents.call_scope import CallScope, current_scope
from agentic_django.openai_agents.provider_errors import reported_error
from agentic_django.openai_agents.recorded_tools import offered_names
from agentic_django.openai_agents.sdk_internals import DelegatingModel

__all__ = [
    "MODEL_ARGUMENTS",
    "JournaledModel",
    "JournaledModelCall",
    "JournaledProvider",
    "journaled_model",
]

MODEL_ARGUMENTS = (
    "system_instructions",
    "input",
    "model_settings",
    "tools",
    "output_schema",
    "handoffs",
    "tracing",
)
"""The positional parameters of ``Model.get_response`` and ``stream_response``, in order."""

_TEXT_DELTAS = ("response.output_text.delta", "response.refusal.delta")


class JournaledProvider(ModelProvider):
    """Wraps a host's provider, so that its models record their responses."""

    def __init__(self, inner: ModelProvider) -> None:
        self.inner = inner

    def get_model(self, model_name: str | None) -> Model:
        """Return the inner provider's model, wrapped."""
        return journaled_model(self.inner.get_model(model_name))


def journaled_model(model: Model, *, is_direct: bool = False) -> Model:
    """Wrap a model so that it records its responses. Return it unchanged if it already does.

    ``is_direct`` says that a host's own code calls it, and not the SDK for the turn of an agent.
    """
    if isinstance(model, JournaledModel):
        if model.is_direct == is_direct:
            return model
        model = model.inner
    return JournaledModel(model, is_direct=is_direct)


class JournaledModel(DelegatingModel):
    """A host's model that records its responses."""

    def __init__(self, inner: Model, *, is_direct: bool = False) -> None:
        super().__init__(inner)
        self.is_direct = is_direct

    async def get_response(self, *args: Any, **kwargs: Any) -> ModelResponse:
        """Return the recorded response, or call the inner model and record its response."""
        call = JournaledModelCall.of(args, kwargs, self)
        if call is None:
            return await self.inner.get_response(*args, **kwargs)
        recorded = call.replay()
        if recorded is not None:
            return recorded
        with call.in_progress():
            response = await self.inner.get_response(*args, **kwargs)
            response.usage = conversion.usable_usage(response.usage)
            response = replace(response, output=call.call_ids.made_unique(response.output))
            await call.record(response)
        return response

    async def stream_response(self, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        """Stream the recorded response as one event, or stream and record the inner model's.

        The response is recorded before its last event is yielded.
        """
        call = JournaledModelCall.of(args, kwargs, self)
        recorded = call.replay() if call else None
        if recorded is not None:
            yield conversion.replay_event(recorded)
            return
        items: list[Any] = []
        event: Any
        with call.in_progress() if call else nullcontext():
            async for event in self.inner.stream_response(*args, **kwargs):
                if call:
                    event = call.call_ids.made_unique_in_event(event)
                if event.type == "response.output_item.done":
                    items.append(event.item)
                elif call and event.type in _TEXT_DELTAS:
                    call.draft.add(event.delta, event.output_index)
                if call and event.type == "response.completed":
                    await call.record(conversion.streamed_response(event.response, items))
                if call:
                    await call.raise_reported_error(event, items)
                yield event


class JournaledModelCall:
    """One model call within a run. ``arguments`` are those of ``Model.get_response``, by name."""

    def __init__(
        self, scope: CallScope, arguments: dict[str, Any], model: JournaledModel | None = None
    ) -> None:
        self.scope = scope
        self.model = model.inner if model else None
        self.is_turn = not scope.is_host_code and not (model and model.is_direct)
        """Whether it is a turn of the scope's agent, and not a call of a host's own code."""
        self.is_nested = scope.is_nested or not (self.is_turn or scope.is_host_code)
        self.handoffs = arguments["handoffs"]
        self.tools = arguments["tools"]
        self.fingerprint = conversion.fingerprint(
            arguments["system_instructions"], arguments["input"], arguments["tools"]
        )
        if self.is_turn:
            self.key = scope.model_key(scope.response_count + 1)
        else:
            self.fingerprint = conversion.question_fingerprint(arguments, self.model)
            self.key = scope.claim_question_key(self.fingerprint)
        self.call_ids = CallIds(scope.journal.call_ids, arguments["input"])
        self.draft = drafts.PartialMessage(scope.journal.attempt, short_key(self.key))
        # An answer that follows a schema is for programs, not for users.
        schema = arguments.get("output_schema")
        is_text = schema is None or schema.is_plain_text()
        self.draft.is_wanted = not self.is_nested and is_text and events.shows_messages()
        self.is_recorded = False
        self.refused: StepCheckpoint | None = None
        """The recorded response, if it failed the run and the model is asked anew."""
        self.started_at = time.monotonic()

    @classmethod
    def of(
        cls, args: tuple[Any, ...], kwargs: dict[str, Any], model: JournaledModel | None = None
    ) -> JournaledModelCall | None:
        """Return the call with these arguments of ``Model.get_response``, or None outside a run."""
        scope = current_scope()
        if scope is None:
            return None
        return cls(scope, {**dict(zip(MODEL_ARGUMENTS, args, strict=False)), **kwargs}, model)

    def replay(self) -> ModelResponse | None:
        """Return the recorded response, or None. A refused response is not returned.

        If the input of the call has changed, because the code has changed, log a warning.
        """
        row = self.scope.journal.find(self.key)
        if row is None:
            return None
        if row.error:
            self.refused = row
            self.scope.journal.before_call(self.key)
            return None
        self._end_turn()
        if row.fingerprint != self.fingerprint:
            text = f"The recorded response of {self.key} is used, although its input has changed."
            self.scope.journal.defer(events.new_event(EventType.LOG, message=text, level="warning"))
        return conversion.load_response(row.result)

    @contextmanager
    def in_progress(self) -> Iterator[None]:
        """Make the call in this block. If the block records nothing, release the call's key."""
        try:
            yield
        finally:
            self.draft.drop()
            if not self.is_recorded:
                self.scope.release_key(self.key)
                self.call_ids.release()

    async def record(self, response: ModelResponse) -> None:
        """Record the response with its usage, cost and events."""
        scope = self.scope
        result = await self._result(self.key, response)
        new_events = conversion.response_events(
            response, scope.agent, nested=self.is_nested, handoffs=self.handoffs
        )
        if scope.agent_has_changed and not self.is_nested:
            new_events.insert(0, events.new_event(EventType.AGENT_UPDATED, agent=scope.agent))
        if self.refused is not None:  # It was paid for, too.
            result.usage = total_usage([self.refused, StepCheckpoint(usage=result.usage)])
        await scope.journal.record(result, new_events, self.refused)
        self.is_recorded = True
        self._end_turn()

    def _end_turn(self) -> None:
        if self.is_turn:
            self.scope.end_turn()

    async def raise_reported_error(self, event: Any, items: list[Any]) -> None:
        """Raise ProviderAnswerError if a stream ends with this event without a complete answer."""
        error = reported_error(event)
        if error is None:
            return
        if event.type == "response.incomplete":
            await self.record_incomplete(conversion.streamed_response(event.response, items))
        raise error

    async def record_incomplete(self, response: ModelResponse) -> None:
        """Record the texts of an answer that ended early, with its usage.

        They have a key of their own, because a retry must make the call again. Tool calls are
        omitted, because their arguments may be incomplete.
        """
        texts: list[Any] = [
            item for item in response.output if isinstance(item, ResponseOutputMessage)
        ]
        response = replace(response, output=texts)
        result = await self._result(f"{self.key}:incomplete", response)
        earlier = self.scope.journal.find(result.key)
        if earlier is not None:
            result.usage = total_usage([earlier, StepCheckpoint(usage=result.usage)])
        new_events = conversion.response_events(
            response, self.scope.agent, nested=self.is_nested, handoffs=self.handoffs
        )
        await self.scope.journal.record(result, new_events, replaces=earlier)

    async def _result(self, key: str, response: ModelResponse) -> CallResult:
        """Return the row of a response, after the last write of its draft."""
        if self.draft.has_begun:
            await event_loop.run_sync_unqueued(self.draft.close)
        usage = conversion.usage_counts(response.usage) | pricing.cost(self.model, response.usage)
        value = conversion.dump_response(response)
        value["offered"] = offered_names(value["output"], self.tools, self.handoffs)
        return CallResult(
            key=key,
            kind=StepCheckpoint.Kind.MODEL,
            name=self.scope.agent,
            value=value,
            seconds=time.monotonic() - self.started_at,
            usage=usage,
            fingerprint=self.fingerprint,
            has_draft=self.draft.is_written,
        )
