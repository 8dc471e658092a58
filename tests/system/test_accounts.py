"""Many users at once: each gets what is theirs, and nothing else, whichever replica serves whom."""

import asyncio
import contextlib
from dataclasses import dataclass, field

import anyio
import httpx
import pytest
from harness.cluster import Cluster
from harness.replicas import Reader, publish
from harness.waiting import until

from allim.client import Message

pytestmark = pytest.mark.anyio

USERS = 300
AT_ONCE = 8  # from one address as many passwords may wait on one replica


@dataclass
class User:
    id: str
    token: str
    stream: Reader
    replica: str = ""
    asked: str = ""
    seen: list[Message] = field(default_factory=list)

    @property
    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token}"}

    def of(self, type_: str) -> list[Message]:
        return [message for message in self.seen if message.type == type_]

    async def follow(self) -> None:
        while True:
            self.seen.append(await self.stream.next(timeout_s=60))


async def test_each_of_300_users_sees_their_own_events_and_no_others(system: Cluster) -> None:
    limit = asyncio.Semaphore(AT_ONCE)
    users: list[User] = []
    async with (
        contextlib.AsyncExitStack() as streams,
        httpx.AsyncClient(base_url=system.url, timeout=60) as http,
        anyio.create_task_group() as readers,
    ):

        async def arrive(number: int) -> None:
            account = {"email": f"crowd-{number}@example.org", "name": f"N{number}", "password": "long enough"}
            async with limit:
                answer = await http.post("/api/accounts", json=account)
                assert answer.status_code == 201, answer.text
                token = answer.json()["token"]
                stream = await streams.enter_async_context(await Reader.open(system.url, token))
                user = User(answer.json()["account"]["id"], token, stream)
                user.replica = (await user.stream.next("stream.open")).data["replica"]
                users.append(user)
                readers.start_soon(user.follow)
                answer = await http.post("/api/accounts/me/snapshots", headers=user.headers)
                assert answer.status_code == 202, answer.text
                user.asked = answer.json()["id"]

        async def own_snapshots(user: User) -> set[str]:
            async with limit:
                answer = await http.get("/api/accounts/me/snapshots", headers=user.headers)
            return {item["id"] for item in answer.json()["items"]}

        await asyncio.gather(*map(arrive, range(USERS)))
        greetings = [{"topic": f"user:{user.id}", "type": "greeting", "data": {"to": user.id}} for user in users]
        assert publish(system.url, greetings).status_code == 202
        await until(lambda: all(user.asked in _generated(user) for user in users), 60, "every snapshot generated")
        # Positions rise over all topics, so whoever heard this has heard everything before it.
        assert publish(system.url, {"topic": "system", "type": "fence", "data": 1}).status_code == 202
        await until(lambda: all(user.of("fence") for user in users), 30, "every stream heard the fence")
        owned = await asyncio.gather(*map(own_snapshots, users))
        readers.cancel_scope.cancel()

    workers: set[str] = set()
    for user, mine in zip(users, owned, strict=True):
        assert [message.data for message in user.of("greeting")] == [{"to": user.id}]
        assert _generated(user).count(user.asked) == 1
        assert len(_generated(user)) == len(set(_generated(user)))
        assert {message.data["snapshotId"] for message in user.seen if message.type.startswith("snapshots.")} <= mine
        assert {message.type for message in user.seen} <= {
            "greeting", "fence", "heartbeat", "snapshots.progress", "snapshots.generated",
        }  # fmt: skip
        workers |= {message.data["serverId"] for message in user.of("snapshots.generated")}
    assert len(workers) > 1
    assert len({user.replica for user in users}) > 1


def _generated(user: User) -> list[str]:
    return [message.data["snapshotId"] for message in user.of("snapshots.generated")]
