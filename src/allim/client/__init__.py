"""A Python client: publish events, follow a stream. Needs httpx, pydantic-core and nothing else of this package.

with Publisher("https://example.org", key="…") as publisher:
    publisher.publish(user_topic("42"), "orders.shipped", {"orderId": 7})

async with Subscriber("https://example.org", token="…", topics=["news"]) as subscriber:
    async for message in subscriber:
        ...
"""

from allim.client.errors import ClientError as ClientError
from allim.client.errors import NotConfirmed as NotConfirmed
from allim.client.parser import Message as Message
from allim.client.parser import Parser as Parser
from allim.client.publisher import AsyncPublisher as AsyncPublisher
from allim.client.publisher import Published as Published
from allim.client.publisher import Publisher as Publisher
from allim.client.subscriber import Subscriber as Subscriber
from allim.client.topics import user_topic as user_topic
