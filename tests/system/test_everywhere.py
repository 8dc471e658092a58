"""What is said to one replica holds on all of them."""

import asyncio
import time

import httpx
import pytest
from harness.cluster import Cluster
from harness.replicas import PUBLISH_KEY, Reader, token

pytestmark = pytest.mark.anyio


async def test_a_sign_out_on_one_replica_ends_the_sessions_streams_on_the_others_within_a_second(
    system: Cluster, who: str
) -> None:
    asked, *holders = system.members
    mine, other = token(who), token(who)
    async with (
        await Reader.open(holders[0].url, mine) as first,
        await Reader.open(holders[1].url, mine) as second,
        await Reader.open(holders[0].url, other) as untouched,
    ):
        for stream in (first, second, untouched):
            await stream.next("stream.open")

        began = time.perf_counter()
        answer = httpx.delete(f"{asked.url}/api/session", headers={"authorization": f"Bearer {mine}"})
        ends = [(await stream.rest(1.0))[-1] for stream in (first, second)]
        took_s = time.perf_counter() - began

        assert answer.status_code == 204
        assert [end.data for end in ends] == [{"reason": "signed_out", "reconnect": False}] * 2
        assert took_s < 1.0
        asked.publish((f"user:{who}", "t", 1))
        assert (await untouched.next("t")).data == 1


async def test_the_same_key_on_two_replicas_at_the_same_moment_is_one_event(system: Cluster, who: str) -> None:
    holder, one, two = system.members
    body = {"topic": f"user:{who}", "type": "t", "data": "once"}
    headers = {"authorization": f"Bearer {PUBLISH_KEY}", "idempotency-key": who}
    async with await Reader.open(holder.url, token(who)) as stream, httpx.AsyncClient() as http:
        await stream.next("stream.open")
        both = [http.post(f"{url}/api/publish", json=body, headers=headers) for url in (one.url, two.url) * 5]
        answers = await asyncio.gather(*both)
        other = await http.post(f"{holder.url}/api/publish", json={**body, "data": "another"}, headers=headers)
        one.publish((f"user:{who}", "t", "last"))

        assert [answer.status_code for answer in answers] == [202] * 10
        (position,) = {answer.json()["id"] for answer in answers}
        assert other.status_code == 409
        assert other.json()["code"] == "conflict"
        first, last = await stream.next("t"), await stream.next("t")
        assert (first.data, first.id, last.data) == ("once", position, "last")
