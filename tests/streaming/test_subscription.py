"""How much a subscription buffers for a reader who is slow."""

from __future__ import annotations

import asyncio

import pytest

from agentic_django.streaming.hub import Subscription
from agentic_django.streaming.sse_messages import PageFeed

LARGE = b"x" * 1_500_000


async def is_finished_after(*chunks: bytes) -> bool:
    subscription = Subscription(PageFeed())
    for chunk in chunks:
        subscription.deliver(chunk, is_finished=False)
    return subscription._is_finished


@pytest.mark.parametrize(
    ("chunks", "finished"),
    [
        ((LARGE,), False),
        ((b"x", b"x"), False),
        ((LARGE, b"x"), True),
        ((b"x", LARGE), True),
    ],
    ids=["one large chunk", "small chunks", "more after a large chunk", "a large chunk after more"],
)
def test_a_stream_is_closed_only_if_its_reader_lags(
    chunks: tuple[bytes, ...], finished: bool
) -> None:
    assert asyncio.run(is_finished_after(*chunks)) is finished
