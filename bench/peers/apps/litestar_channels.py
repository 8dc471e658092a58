"""Litestar's channels as its documentation shows them: one for each user, one for everyone, over Redis Pub/Sub."""

import os
from collections.abc import AsyncIterator
from typing import Any

from litestar import Litestar, get, post
from litestar.channels import ChannelsPlugin, Subscriber
from litestar.channels.backends.redis import RedisChannelsPubSubBackend
from litestar.response import ServerSentEvent
from litestar.response.sse import ServerSentEventMessage
from redis.asyncio import Redis

EVERYONE = "everyone"

redis = Redis.from_url(os.environ["REDIS_URL"], socket_timeout=None)  # the default gives up after 5 s of full load

# Everyone's channel is declared, so that the link to Redis is made at the start: of the backend's first two
# subscriptions, were they made at once, each would make a link, and one would be lost with its own.
plugin = ChannelsPlugin(
    backend=RedisChannelsPubSubBackend(redis=redis),
    channels=[EVERYONE],
    arbitrary_channels_allowed=True,
)


async def events(user: int, channels: ChannelsPlugin) -> ServerSentEvent:
    names = [f"user:{user}", EVERYONE]
    subscriber = await channels.subscribe(names)  # before the head, so that an open stream misses nothing
    return ServerSentEvent(stream(channels, subscriber, names))


async def stream(
    channels: ChannelsPlugin, subscriber: Subscriber, names: list[str]
) -> AsyncIterator[ServerSentEventMessage]:
    try:
        async for event in subscriber.iter_events():
            yield ServerSentEventMessage(event, event="bench")
    finally:
        await channels.unsubscribe(subscriber, names)


async def publish(data: dict[str, Any], channels: ChannelsPlugin) -> dict[str, int]:
    channel = EVERYONE if data["user"] is None else f"user:{data['user']}"
    for event in data["events"]:
        await channels.wait_published(event, channel)  # `publish` would answer before Redis has it
    return {"accepted": len(data["events"])}


app = Litestar(
    [get("/events/{user:int}")(events), post("/publish", status_code=202)(publish)],
    plugins=[plugin],
    openapi_config=None,
)
