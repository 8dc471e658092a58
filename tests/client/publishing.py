"""Both publishers, behind one way to call them."""

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Protocol

import pytest

from allim.client import AsyncPublisher, Published, Publisher

KINDS: tuple[type[Publisher] | type[AsyncPublisher], ...] = (Publisher, AsyncPublisher)
both = pytest.mark.parametrize("kind", KINDS, ids=["sync", "async"])
Kind = type[Publisher] | type[AsyncPublisher]


class Publish(Protocol):
    async def __call__(self, *event: Any, **named: Any) -> Published: ...


@asynccontextmanager
async def publishing(kind: Kind, url: str, key: str = "the-key", **named: Any) -> AsyncIterator[Publish]:
    """Publish one event, or a batch when there is one argument."""
    publisher = kind(url, key, **named)

    async def publish(*event: Any, **named: Any) -> Published:
        method: Any = publisher.publish_batch if len(event) == 1 else publisher.publish
        outcome = method(*event, **named)
        return (await outcome) if inspect.isawaitable(outcome) else outcome  # type: ignore[no-any-return]

    try:
        yield publish
    finally:
        closing: Any = publisher.close()
        if closing is not None:
            await closing
