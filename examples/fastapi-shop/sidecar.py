"""The shop beside allim, to which it publishes over HTTP: `uvicorn sidecar:app --port 9000`."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from fastapi import FastAPI

from allim.client import AsyncPublisher
from shop import create_shop


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    url = os.environ.get("NOTIFY_URL", "http://127.0.0.1:8000")
    async with AsyncPublisher(url, os.environ["NOTIFY_KEY"]) as app.state.publisher:
        yield


async def publish(topic: str, type_: str, data: object, key: str) -> None:
    await app.state.publisher.publish(topic, type_, data, idempotency_key=key)


app = create_shop(publish, lifespan)
