"""Server-sent events as most tutorials write them: a queue and JSON for each stream, one Redis channel."""

import asyncio
import json
import os
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from sse_starlette import EventSourceResponse, JSONServerSentEvent
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

CHANNEL = "notifications"

Queue = asyncio.Queue[dict[str, Any]]

redis = Redis.from_url(os.environ["REDIS_URL"], socket_timeout=None)  # the default gives up after 5 s of full load
queues: defaultdict[int, set[Queue]] = defaultdict(set)


async def listen(pubsub: PubSub) -> None:
    async for message in pubsub.listen():
        if message["type"] == "message":
            dispatch(json.loads(message["data"]))


def dispatch(message: dict[str, Any]) -> None:
    user = message["user"]
    waiting = queues.get(user, ()) if user is not None else [queue for group in queues.values() for queue in group]
    for queue in waiting:
        queue.put_nowait(message)


async def events(request: Request) -> EventSourceResponse:
    user = int(request.path_params["user"])
    queue: Queue = asyncio.Queue()
    queues[user].add(queue)

    async def stream() -> AsyncIterator[JSONServerSentEvent]:
        try:
            while True:
                message = await queue.get()
                yield JSONServerSentEvent(message["data"], event=message["type"])
        finally:
            queues[user].discard(queue)
            if not queues[user]:
                del queues[user]

    return EventSourceResponse(stream())


async def publish(request: Request) -> JSONResponse:
    body = await request.json()
    for data in body["events"]:
        await redis.publish(CHANNEL, json.dumps({"user": body["user"], "type": body["type"], "data": data}))
    return JSONResponse({"accepted": len(body["events"])}, status_code=202)


@asynccontextmanager
async def lifespan(_: Starlette) -> AsyncIterator[None]:
    async with redis.pubsub() as pubsub:
        await pubsub.subscribe(CHANNEL)
        listener = asyncio.create_task(listen(pubsub))
        yield
        listener.cancel()
        with suppress(asyncio.CancelledError):
            await listener
    await redis.aclose()


app = Starlette(
    routes=[Route("/events/{user:int}", events), Route("/publish", publish, methods=["POST"])], lifespan=lifespan
)
