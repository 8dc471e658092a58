"""What `/events` promises: by handover under `allim serve`, the portable way under plain uvicorn, and mounted."""

import asyncio
import socket
import zlib
from contextlib import suppress

import httpx
import pytest
from harness.replicas import PUBLISH_KEY, Reader, Replica, moments_of_drain, replica, token, token_for_topics
from harness.waiting import PATIENCE_S, until

pytestmark = pytest.mark.anyio


async def test_the_head_is_that_of_an_unbuffered_event_stream(server: Replica) -> None:
    async with await Reader.open(server.url, token()) as stream:
        assert stream.status == 200
        assert stream.headers["content-type"].split(";")[0] == "text/event-stream"
        assert stream.headers["cache-control"] == "no-store, no-transform"
        assert stream.headers["x-accel-buffering"] == "no"
        assert stream.headers["x-request-id"]


async def test_the_first_frame_is_the_opening_with_id_and_retry(server: Replica) -> None:
    async with await Reader.open(server.url, token()) as stream:
        first = await stream.next()

        assert first.type == "stream.open"
        assert first.id
        assert first.data["resume"] == "new"
        assert first.data["replica"] == f"replica-{server.port}"
        assert (first.data["replayed"], first.data["resets"], first.data["heartbeat_s"]) == (0, [], 1)
        assert stream.parser.retry_ms is not None
        assert 1000 <= stream.parser.retry_ms <= 3000


async def test_an_event_is_written_byte_for_byte(server: Replica) -> None:
    async with await Reader.open(server.url, token("bytes")) as stream:
        await stream.next("stream.open")
        published = server.publish(("user:bytes", "orders.shipped", {"n": 1, "text": "é\u2028\r\n\0"})).json()
        await stream.next("orders.shipped")

        data = '{"n":1,"text":"é\u2028\\r\\n\\u0000"}'
        assert f"id: {published['id']}\nevent: orders.shipped\ndata: {data}\n\n".encode() in stream.raw


async def test_many_topics_on_one_stream_and_no_others(server: Replica) -> None:
    who = token_for_topics("7", "news:*", "board")
    async with await Reader.open(server.url, who, query="?topics=news:a,board") as stream:
        await stream.next("stream.open")
        server.publish(("news:b", "t", "not asked for"), ("user:8", "t", "not mine"))
        server.publish(("news:a", "t", 1), ("board", "t", 2), ("system", "t", 3), ("user:7", "t", 4))

        assert [(await stream.next("t")).data for _ in range(4)] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("query", "by_header"),
    [
        ("", True),
        ("?last_event_id={}", False),
        ("?lastEventId={}", False),  # event-source-polyfill, reconnecting-eventsource
        ("?lastEventID={}", False),  # Mercure's word for it
        ("?last_event_id={}~a-tickets-proof", False),
        ("?topics=&lastEventId=&_=1700000000000&lastEventID={}&lastEventId=", False),
        ("?last_event_id=garbage&lastEventId={}", False),  # a library appends the newest to the URL that it was given
        ("?lastEventId=garbage&last_event_id={}", False),
        ("?last_event_id=garbage&lastEventId=garbage", True),
    ],
)
async def test_resume_gives_what_was_missed(server: Replica, query: str, by_header: bool) -> None:
    who = f"resume-{zlib.crc32(query.encode())}"
    async with await Reader.open(server.url, token(who)) as stream:
        last = (await stream.next("stream.open")).id
    server.publish(*((f"user:{who}", "t", number) for number in range(5)))

    query = query.format(last)
    header = last if by_header else None
    async with await Reader.open(server.url, token(who), query=query, last_event_id=header) as stream:
        opening = (await stream.next()).data
        assert (opening["resume"], opening["replayed"]) == ("complete", 5)
        assert [(await stream.next()).data for _ in range(5)] == [0, 1, 2, 3, 4]


async def test_an_unknown_parameter_is_ignored(server: Replica) -> None:
    async with await Reader.open(server.url, token(), query="?_=1&cachebust=%00&topic=Bad+Topic") as stream:
        assert (await stream.next()).type == "stream.open"


async def test_resume_beyond_the_history_is_a_reset(server: Replica) -> None:
    async with await Reader.open(server.url, token("trim")) as stream:
        last = (await stream.next("stream.open")).id
    server.publish(*(("user:trim", "t", number) for number in range(15)))

    async with await Reader.open(server.url, token("trim"), last_event_id=last) as stream:
        opening = (await stream.next()).data
        assert opening["resume"] == "reset"
        assert opening["resets"] == [{"topic": "user:trim", "reason": "trimmed"}]
        assert [(await stream.next()).data for _ in range(10)] == list(range(5, 15))


@pytest.mark.parametrize(("last_event_id", "reason"), [("garbage", "malformed"), ("99999999999999-0", "ahead")])
async def test_a_last_event_id_of_no_use_is_a_reset_and_the_stream_lives(
    server: Replica, last_event_id: str, reason: str
) -> None:
    async with await Reader.open(server.url, token("9"), last_event_id=last_event_id) as stream:
        assert stream.status == 200
        opening = (await stream.next()).data
        assert {reset["reason"] for reset in opening["resets"]} == {reason}
        server.publish(("user:9", "t", "live"))
        assert (await stream.next("t")).data == "live"


async def test_heartbeats_come_with_rising_ids(server: Replica) -> None:
    async with await Reader.open(server.url, token()) as stream:
        ids = [(await stream.next("heartbeat", 3)).id for _ in range(3)]

        assert len(set(ids)) == 3


async def test_a_left_stream_is_forgotten(server: Replica) -> None:
    before = server.metric("allim_streams_open")
    streams = [await Reader.open(server.url, token(str(number))) for number in range(20)]
    for stream in streams:
        await stream.next("stream.open")
    assert server.metric("allim_streams_open") == before + 20

    for stream in streams[:10]:
        stream.abort()
    for stream in streams[10:]:
        stream.writer.write_eof()  # half-close: nobody reads on the other side of a browser that says this

    await until(lambda: server.metric("allim_streams_open") <= before, what="streams forgotten")
    for stream in streams[10:]:
        stream.abort()


async def test_an_expired_token_ends_the_stream_and_nothing_follows(server: Replica) -> None:
    async with await Reader.open(server.url, token("exp", lifetime_s=2)) as stream:
        rest = await stream.rest()

    assert rest[-1].type == "stream.close"
    assert rest[-1].data == {"reason": "token_expired", "reconnect": False}


async def test_sign_out_ends_the_sessions_streams(server: Replica) -> None:
    mine, other = token("out"), token("out")
    async with await Reader.open(server.url, mine) as stream, await Reader.open(server.url, other) as untouched:
        await stream.next("stream.open")
        await untouched.next("stream.open")
        httpx.delete(f"{server.url}/api/session", headers={"authorization": f"Bearer {mine}"})

        assert (await stream.rest())[-1].data == {"reason": "signed_out", "reconnect": False}
        server.publish(("user:out", "t", 1))
        assert (await untouched.next("t")).data == 1


async def test_a_slow_reader_is_ended_and_nobody_else(server: Replica) -> None:
    ended = server.metric("allim_streams_closed_total", reason="slow_reader")
    async with (
        await Reader.open(server.url, token("slow"), receive_bytes=2048) as slow,
        await Reader.open(server.url, token("slow")) as quick,
    ):
        await quick.next("stream.open")

        async def feed() -> bool:
            server.publish(("user:slow", "t", "x" * 60_000))
            await quick.next("t")
            return server.metric("allim_streams_closed_total", reason="slow_reader") > ended

        await until(feed, 2 * PATIENCE_S)
        assert slow.status == 200


async def test_a_reader_that_reads_gets_a_burst_of_many_times_its_buffer_and_stays(server: Replica) -> None:
    """Where everything comes at once after a stall, its buffer fills for no fault of its own."""
    behind = server.metric("allim_streams_behind_total")
    async with await Reader.open(server.url, token("burst"), receive_bytes=4096) as stream:
        await stream.next("stream.open")
        server.publish(*(("user:burst", "t", [number, "x" * 60_000]) for number in range(10)))

        assert [(await stream.next("t")).data[0] for _ in range(10)] == list(range(10))
        server.publish(("user:burst", "t", ["live"]))
        assert (await stream.next("t")).data == ["live"]
    assert server.metric("allim_streams_behind_total") == behind + 1


async def test_a_slow_return_gets_all_of_its_history(server: Replica) -> None:
    """More than the stream's buffer is missed: catch-up waits for the reader instead of ending it."""
    async with await Reader.open(server.url, token("big")) as stream:
        last = (await stream.next("stream.open")).id
    for number in range(8):
        server.publish(("user:big", "t", [number, "x" * 60_000]))

    async with await Reader.open(server.url, token("big"), last_event_id=last, receive_bytes=4096) as stream:
        assert [(await stream.next("t")).data[0] for _ in range(8)] == list(range(8))


@pytest.mark.parametrize(
    ("who", "query", "status", "field"),
    [
        ("", "", 401, None),
        ("nonsense", "", 401, None),
        (PUBLISH_KEY, "", 401, None),
        (token(), "?topics=user:43", 403, "topics"),
        (token(), "?topics=nosuchtopic", 403, "topics"),
        (token(), "?topics=Bad%20Topic", 422, "topics"),
        (token(), "?topics=a%0d%0ab", 422, "topics"),
        (token(), "?topics=" + ",".join(f"t{n}" for n in range(101)), 422, "topics"),
    ],
)
async def test_refusals_are_problems_that_name_the_field(
    server: Replica, who: str, query: str, status: int, field: str | None
) -> None:
    headers = {"authorization": f"Bearer {who}"} if who else {}
    answer = httpx.get(f"{server.url}/events{query}", headers=headers)

    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert [error["field"] for error in answer.json().get("errors", [])] == ([field] if field else [])


async def test_other_methods_are_refused_and_head_opens_nothing(server: Replica) -> None:
    opened = server.metric("allim_streams_opened_total")

    refused = httpx.post(f"{server.url}/events")
    head = httpx.head(f"{server.url}/events", headers={"authorization": f"Bearer {token()}"})

    assert (refused.status_code, refused.headers["content-type"]) == (405, "application/problem+json")
    assert (head.status_code, head.headers["content-type"].split(";")[0]) == (200, "text/event-stream")
    assert (head.headers["cache-control"], head.headers.get("content-length")) == ("no-store, no-transform", None)
    assert server.metric("allim_streams_opened_total") == opened


@pytest.mark.parametrize("portable", [False, True], ids=["handover", "portable"])
async def test_a_pipelined_request_does_not_leak_the_stream(portable: bool) -> None:
    """uvicorn tells only the newest of two requests that its client left; then the lifetime ends the stream."""
    with replica(portable=portable, stream_lifetime_s=3 if portable else 900) as server:
        ask = f"GET /events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token()}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(ask)
            await asyncio.to_thread(client.recv, 4096)
            client.sendall(ask)

        opened = server.metric("allim_streams_opened_total")
        await until(lambda: server.metric("allim_streams_open") == 0, what="stream freed")
        assert opened >= 1


async def test_a_client_that_cannot_have_its_stream_is_no_defect_in_the_log() -> None:
    with replica() as server:
        ask = f"GET /events HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token()}\r\n\r\n".encode()
        with socket.create_connection(("127.0.0.1", server.port)) as client:
            client.sendall(ask + ask)
            with suppress(ConnectionResetError):
                await asyncio.to_thread(client.recv, 4096)

        await until(
            lambda: '"path": "/events", "status": 499' in server.log.read_text(), what="its request is logged"
        )
        assert '"error"' not in server.log.read_text()


@pytest.mark.parametrize("portable", [False, True], ids=["handover", "portable"])
async def test_sigterm_tells_every_stream_at_its_own_moment(portable: bool) -> None:
    with replica(portable=portable, drain_s=2) as server:
        moments = await moments_of_drain(server, 30)
        await until(lambda: server.process.poll() is not None, 5)
        assert max(moments) - min(moments) > 0.5, "all at once"
        assert portable or server.process.returncode == 0
