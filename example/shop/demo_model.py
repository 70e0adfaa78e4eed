"""An offline model for the demo: the SDK's own ``Model`` interface over a few rules.

It keeps no state: its answer depends only on the input. Its ids are random.
"""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Callable, Iterator
from itertools import count
from typing import Any
from uuid import uuid4

from agents import (
    AgentOutputSchemaBase,
    Handoff,
    Model,
    ModelResponse,
    ModelSettings,
    ModelTracing,
    Tool,
    TResponseInputItem,
    Usage,
)
from agents.items import TResponseOutputItem, TResponseStreamEvent
from openai.types.responses import (
    Response,
    ResponseCompletedEvent,
    ResponseContentPartAddedEvent,
    ResponseContentPartDoneEvent,
    ResponseCreatedEvent,
    ResponseFunctionCallArgumentsDeltaEvent,
    ResponseFunctionCallArgumentsDoneEvent,
    ResponseFunctionToolCall,
    ResponseInProgressEvent,
    ResponseOutputItemAddedEvent,
    ResponseOutputItemDoneEvent,
    ResponseOutputMessage,
    ResponseOutputText,
    ResponseTextDeltaEvent,
    ResponseTextDoneEvent,
    ResponseUsage,
)
from openai.types.responses.response_prompt_param import ResponsePromptParam
from openai.types.responses.response_usage import InputTokensDetails, OutputTokensDetails

from example.shop.demo_replies import Call, Reply, Result, Turn, reply

type Input = str | list[TResponseInputItem]

THINKING = 15
"""How many pauses the model takes before it starts to answer."""


class DemoModel(Model):
    """Answers by rules, and at the speed of a real model where ``pause`` (seconds) says so."""

    def __init__(self, *, pause: float = 0.0, answer: Callable[[Turn], Reply] = reply) -> None:
        self.pause = pause
        self.answer = answer

    async def get_response(
        self,
        system_instructions: str | None,
        input: Input,
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff],
        tracing: ModelTracing,
        *,
        previous_response_id: str | None,
        conversation_id: str | None,
        prompt: ResponsePromptParam | None,
    ) -> ModelResponse:
        """Answer in one piece."""
        await asyncio.sleep(self.pause * THINKING)
        output = _output(self.answer(_turn(input)))
        spent = _tokens(system_instructions, input), _tokens(_plain(output))
        usage = Usage(
            requests=1, input_tokens=spent[0], output_tokens=spent[1], total_tokens=sum(spent)
        )
        return ModelResponse(output=output, usage=usage, response_id=_name("resp"))

    async def stream_response(
        self,
        system_instructions: str | None,
        input: Input,
        model_settings: ModelSettings,
        tools: list[Tool],
        output_schema: AgentOutputSchemaBase | None,
        handoffs: list[Handoff],
        tracing: ModelTracing,
        *,
        previous_response_id: str | None,
        conversation_id: str | None,
        prompt: ResponsePromptParam | None,
    ) -> AsyncIterator[TResponseStreamEvent]:
        """Answer in the events of a real stream, a few words at a time."""
        output = _output(self.answer(_turn(input)))
        response = _response(output, _tokens(system_instructions, input), _tokens(_plain(output)))
        for event in _events(response):
            if isinstance(event, ResponseInProgressEvent):
                await asyncio.sleep(self.pause * THINKING)
            if isinstance(event, ResponseTextDeltaEvent):
                await asyncio.sleep(self.pause)
            yield event


def _output(answer: Reply) -> list[TResponseOutputItem]:
    if isinstance(answer, str):
        return [_message(answer)]
    return [_function_call(call) for call in answer]


def _turn(input: Input) -> Turn:
    """Read the last turn and the person's earlier messages from the input items."""
    if isinstance(input, str):
        return Turn(input)
    said: list[str] = []
    calls: dict[str, Call] = {}
    results: list[Result] = []
    for item in map(_mapping, input):
        if item.get("role") == "user":
            said.append(_words(item["content"]))
            results.clear()
        elif item.get("type") == "function_call":
            calls[item["call_id"]] = Call(item["name"], json.loads(item["arguments"]))
        elif item.get("type") == "function_call_output" and item["call_id"] in calls:
            results.append(Result(calls[item["call_id"]], _words(item["output"])))
    return Turn(said[-1] if said else "", said[:-1], results)


def _mapping(item: Any) -> dict[str, Any]:
    return item if isinstance(item, dict) else item.model_dump()


def _words(content: str | list[dict[str, Any]]) -> str:
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", "") for part in content)


def _message(text: str) -> ResponseOutputMessage:
    return ResponseOutputMessage(
        id=_name("msg"),
        type="message",
        role="assistant",
        status="completed",
        content=[ResponseOutputText(type="output_text", text=text, annotations=[], logprobs=[])],
    )


def _function_call(call: Call) -> ResponseFunctionToolCall:
    return ResponseFunctionToolCall(
        id=_name("fc"),
        call_id=_name("call"),
        type="function_call",
        name=call.name,
        arguments=json.dumps(call.arguments),
        status="completed",
    )


def _response(output: list[TResponseOutputItem], input_tokens: int, output_tokens: int) -> Response:
    return Response(
        id=_name("resp"),
        created_at=time.time(),
        model="offline-demo",
        object="response",
        output=output,
        parallel_tool_calls=True,
        status="completed",
        tool_choice="auto",
        tools=[],
        usage=ResponseUsage(
            input_tokens=input_tokens,
            input_tokens_details=InputTokensDetails(cached_tokens=0, cache_write_tokens=0),
            output_tokens=output_tokens,
            output_tokens_details=OutputTokensDetails(reasoning_tokens=0),
            total_tokens=input_tokens + output_tokens,
        ),
    )


def _events(response: Response) -> Iterator[TResponseStreamEvent]:
    """Yield the events of a response in the order in which the Responses API sends them."""
    number = count()
    begun = response.model_copy(update={"output": [], "status": "in_progress", "usage": None})
    yield ResponseCreatedEvent(
        type="response.created", response=begun, sequence_number=next(number)
    )
    yield ResponseInProgressEvent(
        type="response.in_progress", response=begun, sequence_number=next(number)
    )
    for index, item in enumerate(response.output):
        if isinstance(item, ResponseOutputMessage):
            yield from _message_events(item, index, number)
        elif isinstance(item, ResponseFunctionToolCall):
            yield from _call_events(item, index, number)
    yield ResponseCompletedEvent(
        type="response.completed", response=response, sequence_number=next(number)
    )


def _message_events(
    message: ResponseOutputMessage, index: int, number: Iterator[int]
) -> Iterator[TResponseStreamEvent]:
    part = message.content[0]
    assert isinstance(part, ResponseOutputText)
    position: Any = {"item_id": message.id, "output_index": index, "content_index": 0}
    yield _added(message.model_copy(update={"content": [], "status": "in_progress"}), index, number)
    yield ResponseContentPartAddedEvent(
        type="response.content_part.added",
        part=part.model_copy(update={"text": ""}),
        sequence_number=next(number),
        **position,
    )
    for words in re.findall(r"(?:\S+\s*){1,3}|\s+", part.text):
        yield ResponseTextDeltaEvent(
            type="response.output_text.delta",
            delta=words,
            logprobs=[],
            sequence_number=next(number),
            **position,
        )
    yield ResponseTextDoneEvent(
        type="response.output_text.done",
        text=part.text,
        logprobs=[],
        sequence_number=next(number),
        **position,
    )
    yield ResponseContentPartDoneEvent(
        type="response.content_part.done", part=part, sequence_number=next(number), **position
    )
    yield _done(message, index, number)


def _call_events(
    call: ResponseFunctionToolCall, index: int, number: Iterator[int]
) -> Iterator[TResponseStreamEvent]:
    position: Any = {"item_id": call.id, "output_index": index}
    yield _added(call.model_copy(update={"arguments": "", "status": "in_progress"}), index, number)
    yield ResponseFunctionCallArgumentsDeltaEvent(
        type="response.function_call_arguments.delta",
        delta=call.arguments,
        sequence_number=next(number),
        **position,
    )
    said = {"name": call.name, "arguments": call.arguments, "sequence_number": next(number)}
    yield ResponseFunctionCallArgumentsDoneEvent.model_validate(
        {"type": "response.function_call_arguments.done", **said, **position}
    )
    yield _done(call, index, number)


def _added(
    item: TResponseOutputItem, index: int, number: Iterator[int]
) -> ResponseOutputItemAddedEvent:
    return ResponseOutputItemAddedEvent(
        type="response.output_item.added",
        item=item,
        output_index=index,
        sequence_number=next(number),
    )


def _done(
    item: TResponseOutputItem, index: int, number: Iterator[int]
) -> ResponseOutputItemDoneEvent:
    return ResponseOutputItemDoneEvent(
        type="response.output_item.done",
        item=item,
        output_index=index,
        sequence_number=next(number),
    )


def _plain(output: list[TResponseOutputItem]) -> list[dict[str, Any]]:
    return [item.model_dump(exclude_unset=True) for item in output]


def _tokens(*texts: object) -> int:
    """Estimate as the rule of thumb goes: four characters to a token."""
    return len(json.dumps(texts, default=str)) // 4


def _name(kind: str) -> str:
    return f"{kind}_{uuid4().hex}"
