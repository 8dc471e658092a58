"""What nginx promises: streams at once, nothing sent twice, an answer that brings browsers back."""

import asyncio
import json
import os
import pwd
import re
import shutil
import subprocess
import time
from contextlib import nullcontext, suppress
from pathlib import Path

import anyio
import httpx
import pytest
from harness.waiting import PATIENCE_S

from allim.http.requests import SECURITY_HEADERS
from allim.up import nginx_command, write_nginx
from tests.http.test_origins import COVERED, NOT_COVERED, PATTERNS
from tests.nginx.conftest import Front, Start, free_port
from tests.nginx.stub import STREAM_HEAD, Answer, Asked, Stub, chunk, hang_up, plain

pytestmark = pytest.mark.anyio

PROBLEM = "application/problem+json"


def nobody_listens() -> str:
    return f"127.0.0.1:{free_port()}"


async def until_logged(front: Front, text: str) -> str:
    """nginx writes its line after the answer; wait for it."""
    with anyio.fail_after(5):
        while text not in front.log():
            await anyio.sleep(0.01)
    return front.log()


# -- The configuration itself -----------------------------------------------------------------------------


def test_configuration_is_accepted_without_a_warning(nginx: str, folder: Path) -> None:
    write_nginx(folder / "nginx", listen="127.0.0.1:8000", servers=["127.0.0.1:8001", "127.0.0.1:8002"])

    answer = subprocess.run([*nginx_command(nginx, folder / "nginx"), "-t"], capture_output=True, text=True)

    assert answer.returncode == 0, answer.stderr
    assert "[warn]" not in answer.stderr


@pytest.mark.skipif(os.geteuid() != 0, reason="the other tests run as an ordinary user already")
def test_configuration_is_accepted_from_an_ordinary_user(nginx: str, folder: Path) -> None:
    write_nginx(folder / "nginx", listen="127.0.0.1:8000", servers=["127.0.0.1:8001"])
    nobody = pwd.getpwnam("nobody")
    for path in (folder, *folder.rglob("*")):
        shutil.chown(path, nobody.pw_uid, nobody.pw_gid)

    answer = subprocess.run(
        [*nginx_command(nginx, folder / "nginx"), "-t"],
        user=nobody.pw_uid,
        group=nobody.pw_gid,
        extra_groups=[],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )

    assert answer.returncode == 0, answer.stderr


# -- The stream -------------------------------------------------------------------------------------------


async def test_events_are_passed_on_at_once(start: Start) -> None:
    read = asyncio.Event()

    async def answer(_: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(b"data: 1\n\n"))
        await read.wait()  # a proxy that collects would wait for more, and so would this
        writer.write(chunk(b"data: 2\n\n") + chunk(b""))
        writer.close()

    async with Stub(answer) as stub, start(stub.address) as front, front.client() as client:
        with anyio.fail_after(5):
            async with client.stream("GET", "/events", headers={"Accept-Encoding": "gzip"}) as response:
                chunks = response.aiter_raw()
                first = await anext(chunks)
                read.set()
                rest = b"".join([chunk async for chunk in chunks])

    assert first == b"data: 1\n\n"
    assert rest == b"data: 2\n\n"
    assert "content-encoding" not in response.headers


async def test_another_nginx_in_front_that_compresses_holds_nothing_back(start: Start, start_outer: Start) -> None:
    read = asyncio.Queue[None]()

    async def answer(_: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD)
        for number in range(3):
            writer.write(chunk(b"data: %d\n\n" % number))
            await read.get()
        writer.write(chunk(b""))
        writer.close()

    async with (
        Stub(answer) as stub,
        start(stub.address) as front,
        start_outer(front.url) as outer,
        outer.client() as client,
    ):
        with anyio.fail_after(PATIENCE_S):
            async with client.stream("GET", "/events", headers={"Accept-Encoding": "gzip"}) as response:
                got = []
                async for piece in response.aiter_bytes():
                    got.append(piece)
                    read.put_nowait(None)

    assert got == [b"data: 0\n\n", b"data: 1\n\n", b"data: 2\n\n"]
    assert response.headers["content-encoding"] == "gzip"


@pytest.mark.parametrize("dies", [True, False], ids=["killed", "ended"])
async def test_a_stream_that_its_replica_did_not_end_is_cut(start: Start, dies: bool) -> None:
    async def answer(_: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(b"data: 1\n\n") + (b"" if dies else chunk(b"")))
        writer.close()

    got = b""
    async with Stub(answer) as stub, start(stub.address) as front, front.client() as client:
        cut = pytest.raises(httpx.RemoteProtocolError) if dies else nullcontext()
        with anyio.fail_after(PATIENCE_S), cut:
            async with client.stream("GET", "/events") as response:
                async for piece in response.aiter_bytes():
                    got += piece

    assert got == b"data: 1\n\n"


async def test_a_browser_that_leaves_frees_its_stream_on_the_replica(start: Start) -> None:
    async def answer(_: Asked, writer: asyncio.StreamWriter) -> None:
        writer.write(STREAM_HEAD + chunk(b"data: 1\n\n"))

    async with (
        Stub(answer) as stub,
        start(stub.address) as front,
        front.client() as client,
        client.stream("GET", "/events") as response,
    ):
        await anext(response.aiter_raw())
        assert not stub.closed.is_set()

        with anyio.fail_after(5):
            await stub.closed.wait()


async def test_without_replicas_a_stream_is_told_when_to_come_back(start: Start) -> None:
    async with start(nobody_listens(), nobody_listens()) as front, front.client() as client:
        answers = [await client.get("/events?topics=a") for _ in range(40)]

    for answer in answers:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream"
        assert answer.headers["cache-control"] == "no-store, no-transform"
        assert answer.headers["x-accel-buffering"] == "no"
    waits = {answer.text for answer in answers}
    assert waits <= {f"retry: {wait_ms}\n\n" for wait_ms in range(1000, 5000, 200)}
    assert len(waits) >= 8


async def test_a_stream_that_all_replicas_refuse_is_told_when_to_come_back(start: Start) -> None:
    full = plain("503 Service Unavailable", b"{}", Content_Type=PROBLEM, Retry_After="2")
    async with (
        Stub(full) as one,
        Stub(full) as two,
        start(one.address, two.address) as front,
        front.client() as client,
    ):
        answer = await client.get("/events")

    assert (answer.status_code, answer.headers["content-type"]) == (200, "text/event-stream")
    assert answer.text.startswith("retry: ")
    assert len(one.asked) == len(two.asked) == 1


@pytest.mark.parametrize("status", ["204 No Content", "401 Unauthorized", "404 Not Found", "429 Too Many Requests"])
async def test_other_answers_on_events_pass_as_they_are(start: Start, status: str) -> None:
    body = b"" if status.startswith("204") else b'{"code":"x"}'
    async with Stub(plain(status, body)) as stub, start(stub.address) as front, front.client() as client:
        answer = await client.get("/events")

    assert answer.status_code == int(status[:3])
    assert answer.content == body


async def test_a_draining_replica_hands_streams_to_the_next_and_is_not_taken_out(start: Start) -> None:
    draining = plain("503 Service Unavailable")
    async with (
        Stub(draining) as one,
        Stub(plain(body=b"two")) as two,
        start(one.address, two.address) as front,
        front.client() as client,
    ):
        while_draining = [(await client.get("/events")).text for _ in range(10)]
        one.answer = plain(body=b"one")
        afterwards = {(await client.get("/events")).text for _ in range(10)}

    assert while_draining == ["two"] * 10
    assert "one" in afterwards


# -- REST -------------------------------------------------------------------------------------------------


async def test_without_replicas_rest_answers_a_problem_that_says_when_to_try_again(start: Start) -> None:
    async with start(nobody_listens()) as front, front.client() as client:
        answer = await client.get("/api/accounts/me.html", headers={"X-Request-ID": "my-id"})

    assert answer.status_code == 502
    assert answer.headers["content-type"] == PROBLEM
    assert answer.headers["retry-after"] == "2"
    assert answer.headers["x-request-id"] == "my-id"
    assert answer.json() == {
        "type": "urn:allim:problem:unavailable",
        "title": "Bad gateway",
        "status": 502,
        "detail": "No replica answers at the moment.",
        "code": "unavailable",
        "retryable": True,
        "request_id": "my-id",
    }


async def test_the_apps_own_problems_pass_untouched_and_do_not_take_it_out(start: Start) -> None:
    body = b'{"code":"unavailable","detail":"Redis does not answer."}'
    refusing = plain("503 Service Unavailable", body, Content_Type=PROBLEM, Retry_After="7")
    async with (
        Stub(refusing) as one,
        Stub(refusing) as two,
        start(one.address, two.address) as front,
        front.client() as client,
    ):
        answers = [await client.post("/api/publish", content=b"{}") for _ in range(6)]

    assert {answer.content for answer in answers} == {body}
    assert {answer.headers["retry-after"] for answer in answers} == {"7"}
    assert (len(one.asked), len(two.asked)) == (3, 3)


async def test_a_post_that_was_sent_is_never_sent_again(start: Start) -> None:
    async with (
        Stub(hang_up) as one,
        Stub(hang_up) as two,
        start(one.address, two.address) as front,
        front.client() as client,
    ):
        answer = await client.post("/api/publish", content=b"{}")

    assert answer.status_code == 502
    assert answer.json()["code"] == "unavailable"
    assert len(one.asked) + len(two.asked) == 1


async def test_a_stream_that_was_asked_for_is_asked_for_once_more_of_each_replica_only(start: Start) -> None:
    async with (
        Stub(hang_up) as one,
        Stub(hang_up) as two,
        start(one.address, two.address) as front,
        front.client() as client,
    ):
        answer = await client.get("/events?topics=a", headers={"X-Request-ID": "my-id"})

    assert answer.status_code == 200
    assert answer.text.startswith("retry: ")
    assert len(one.asked) == len(two.asked) == 1


async def test_what_reached_no_replica_is_tried_a_second_time(start: Start) -> None:
    """As a change of the list of replicas needs it, which nginx before 1.27.3 does not have."""
    async with start(nobody_listens()) as front, front.client() as client:
        call = await client.post("/api/publish", content=b"{}")
        stream = await client.get("/events?topics=a")

    assert (call.status_code, stream.status_code) == (502, 200)
    attempts = [json.loads(line)["upstream"] for line in front.log().splitlines() if line.startswith("{")]
    assert [attempt.count(" : ") for attempt in attempts] == [1, 1]


async def test_a_get_goes_to_the_next_replica(start: Start) -> None:
    async with (
        Stub(hang_up) as one,
        Stub(hang_up) as two,
        start(one.address, two.address) as front,
        front.client() as client,
    ):
        await client.get("/api/accounts/me")

    assert len(one.asked) == len(two.asked) == 1


async def test_a_post_that_a_dead_replica_refused_goes_to_the_next(start: Start) -> None:
    async with Stub() as stub, start(nobody_listens(), stub.address) as front, front.client() as client:
        statuses = {(await client.post("/api/publish", content=b"{}")).status_code for _ in range(6)}

    assert statuses == {200}
    assert len(stub.asked) == 6


async def never(_: Asked, __: asyncio.StreamWriter) -> None:
    """Hang, as a stopped process does: the connection stays, and no answer comes."""
    await asyncio.Event().wait()


async def test_a_call_that_is_not_answered_in_time_is_sent_once_and_answered_504(start: Start) -> None:
    changed = {"proxy_read_timeout 30s": "proxy_read_timeout 500ms"}
    async with (
        Stub(never) as one,
        Stub(never) as two,
        start(one.address, two.address, changed=changed) as front,
        front.client() as client,
    ):
        answer = await client.post("/api/accounts", content=b"{}")

    assert answer.status_code == 504
    assert answer.json()["status"] == 504
    assert len(one.asked) + len(two.asked) == 1


async def oversized(_: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX-Long: %b\r\nContent-Length: 0\r\n\r\n" % (b"a" * 20_000))


async def garbled(_: Asked, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n\0: x\r\nContent-Length: 0\r\n\r\n")


PROVOKED: dict[str, Answer] = {
    "a broken exchange": hang_up,
    "an oversized head": oversized,
    "a head that is none": garbled,
    "no answer in time": never,
}


@pytest.mark.parametrize("kind", PROVOKED)
@pytest.mark.parametrize("path", ["/api/provoked", "/provoked", "/assets/provoked", "/events", "/healthz"])
async def test_what_one_client_provokes_takes_no_replica_from_the_others(start: Start, kind: str, path: str) -> None:
    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        await (plain() if asked.target == "/api/publish" else PROVOKED[kind])(asked, writer)

    times = {"read_timeout 30s": "read_timeout 100ms", "read_timeout 40s": "read_timeout 100ms"}
    times["read_timeout 5s"] = "read_timeout 100ms"
    async with (
        Stub(answer) as one,
        Stub(answer) as two,
        start(one.address, two.address, changed=times) as front,
        front.client() as client,
    ):
        provoked, statuses = [], []
        for _ in range(10):
            provoked.append((await client.get(path)).status_code)
            statuses += [(await client.post("/api/publish", content=b"{}")).status_code for _ in range(5)]

    assert set(provoked) <= {200 if path == "/events" else 502, 504}
    assert statuses == [200] * 50


async def test_a_hung_replica_holds_hardly_more_requests_than_come_at_once(start: Start) -> None:
    """The requests that wait for it are its load, so least_conn sends the others elsewhere."""
    at_once = 4
    async with (
        Stub(never) as hung,
        Stub() as one,
        Stub() as two,
        start(hung.address, one.address, two.address) as front,
        front.client() as client,
    ):
        answered: list[int] = []

        async def publish() -> None:
            for _ in range(50):
                answered.append((await client.post("/api/publish", content=b"{}")).status_code)

        publishers = [asyncio.create_task(publish()) for _ in range(at_once + 2)]
        with anyio.fail_after(20):
            while len(answered) < 50 * at_once:
                await anyio.sleep(0.01)
        for publisher in publishers:
            publisher.cancel()
        await asyncio.gather(*publishers, return_exceptions=True)

    assert set(answered) == {200}
    assert 0 < len(hung.asked) <= 2


async def test_connections_to_a_replica_are_used_again(start: Start) -> None:
    async with Stub() as stub, start(stub.address) as front, front.client() as client:
        for _ in range(10):
            await client.post("/api/publish", content=b"{}")

    assert [asked.connection for asked in stub.asked] == [1] * 10


# -- What replicas are told -------------------------------------------------------------------------------


async def test_a_clients_word_about_itself_is_overwritten(start: Start) -> None:
    forged = {
        "X-Forwarded-For": "6.6.6.6",
        "X-Forwarded-Proto": "https",
        "X-Forwarded-Host": "evil.example",
        "Forwarded": "for=6.6.6.6",
    }
    async with Stub() as stub, start(stub.address) as front, front.client() as client:
        for path in ("/", "/events", "/api/accounts/me"):
            await client.get(path, headers={**forged, "Host": "allim.example:8443"})

    for asked in stub.asked:
        assert asked.headers["x-forwarded-for"] == "127.0.0.1"
        assert asked.headers["x-forwarded-proto"] == "http"
        assert asked.headers["host"] == "allim.example:8443"
        assert asked.headers.keys().isdisjoint({"x-forwarded-host", "forwarded", "connection"})
    assert len(stub.asked) == 3


async def test_the_word_of_a_trusted_proxy_is_passed_on_and_of_a_chain_what_it_added(start: Start) -> None:
    told = {"X-Forwarded-For": "6.6.6.6, 203.0.113.7, 127.0.1.9", "X-Forwarded-Proto": "https"}
    trusted = ["127.0.0.1", "127.0.1.7/24"]
    async with Stub() as stub, start(stub.address, trusted=trusted) as front, front.client() as client:
        page = await client.get("/api/x", headers=told)
        await client.get("/events", headers={**told, "X-Forwarded-Proto": "gopher"})

    assert [asked.headers["x-forwarded-for"] for asked in stub.asked] == ["203.0.113.7"] * 2
    assert [asked.headers["x-forwarded-proto"] for asked in stub.asked] == ["https", "http"]
    assert page.status_code == 200
    assert [json.loads(line)["client"] for line in front.log().splitlines()] == ["203.0.113.7"] * 2


async def test_nobody_else_is_believed_where_a_proxy_is_trusted(start: Start) -> None:
    forged = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https"}
    async with Stub() as stub, start(stub.address, trusted=["127.0.0.1"]) as front:
        transport = httpx.AsyncHTTPTransport(local_address="127.0.0.2")
        async with httpx.AsyncClient(transport=transport, base_url=front.url) as client:
            await client.get("/api/x", headers=forged)

    assert [asked.headers["x-forwarded-for"] for asked in stub.asked] == ["127.0.0.2"]
    assert [asked.headers["x-forwarded-proto"] for asked in stub.asked] == ["http"]


async def test_what_nginx_answers_to_https_over_a_trusted_proxy_is_as_strict(start: Start) -> None:
    async with start(nobody_listens(), trusted=["127.0.0.1"]) as front, front.client() as client:
        told = {"X-Forwarded-For": "203.0.113.7", "X-Forwarded-Proto": "https"}
        answers = [await client.get("/api/x", headers=headers) for headers in (told, {})]

    assert ["strict-transport-security" in answer.headers for answer in answers] == [True, False]


@pytest.mark.parametrize(
    ("given", "passed"),
    [("order-7_a.b", True), ("a" * 64, True), ("a" * 65, False), ('a"b', False), ("../x", False), ("", False)],
)
async def test_a_request_id_is_passed_on_if_harmless_and_made_otherwise(
    start: Start, given: str, passed: bool
) -> None:
    async with Stub() as stub, start(stub.address) as front, front.client() as client:
        await client.get("/api/accounts/me", headers={"X-Request-ID": given})

    sent = stub.asked[0].headers["x-request-id"]
    assert (sent == given) if passed else re.fullmatch("[0-9a-f]{32}", sent)


async def test_the_query_string_is_in_no_log(start: Start) -> None:
    async with Stub() as stub, start(nobody_listens(), stub.address) as front, front.client() as client:
        for path in ("/events", "/api/a", "/x", "/metrics"):
            await client.get(f"{path}?token=TOPSECRET", headers={"Referer": "http://x/?TOPSECRET"})
        log = await until_logged(front, '"path":"/metrics"')

    lines = [json.loads(line) for line in log.splitlines()]
    assert [line["path"] for line in lines] == ["/events", "/api/a", "/x", "/metrics"]
    assert "TOPSECRET" not in log
    assert stub.asked[0].target == "/events?token=TOPSECRET"


async def test_the_log_cannot_be_forged(start: Start) -> None:
    path = '/api/","forged":"1\\'
    async with Stub() as stub, start(stub.address) as front:
        await raw(front, "GET", path, {"X-Request-ID": 'a","forged":"1'})
        log = await until_logged(front, '"path":"/api/')

    (line,) = [json.loads(line) for line in log.splitlines()]
    assert "forged" not in line
    assert (line["path"], line["upstream"]) == (path, stub.address)


# -- Limits -----------------------------------------------------------------------------------------------


async def test_a_body_over_the_limit_is_a_problem(start: Start) -> None:
    async with Stub() as stub, start(stub.address) as front, front.client() as client:
        answer = await client.post("/api/publish", content=bytes(4 * 1024 * 1024))

    assert (answer.status_code, answer.headers["content-type"]) == (413, PROBLEM)
    assert answer.json()["code"] == "too_large"
    assert "retry-after" not in answer.headers
    assert not stub.asked


async def test_a_body_up_to_the_limit_reaches_the_app(start: Start) -> None:
    body = bytes(2_500_000)
    refusing = plain("413 Content Too Large", b'{"detail":"The limit is 2 MiB."}', Content_Type=PROBLEM)
    async with Stub(refusing) as stub, start(stub.address) as front, front.client() as client:
        answer = await client.post("/api/publish", content=body)

    assert stub.asked[0].body == body
    assert answer.json() == {"detail": "The limit is 2 MiB."}


MIB = 1024 * 1024
REFUSED = [
    ("GET", "/api/" + "a" * 100 * 1024, {}, 414, "uri_too_long"),
    ("GET", "/events?topics=" + "a" * 17_000, {}, 414, "uri_too_long"),
    ("GET", "/api/", {"Cookie": "a" * MIB}, 431, "head_too_large"),
    ("GET", "/events", {"Authorization": "Bearer " + "a" * 17_000}, 431, "head_too_large"),
    ("GET", "/api/", {f"X-{i}": "a" * 15_000 for i in range(10)}, 431, "head_too_large"),
    ("POST", "/api/publish", {"Content-Length": str(64 * MIB)}, 413, "too_large"),  # and not one byte of it
    ("POST", "/events", {"Content-Length": str(64 * MIB)}, 413, "too_large"),
    ("POST", "/api/session", {"Content-Length": str(200_000)}, 413, "too_large"),
    ("POST", "/x", {"Content-Length": str(200_000)}, 413, "too_large"),
    ("GET", "/events", {"Content-Length": "2"}, 413, "too_large"),
    ("GET", "/readyz", {"Content-Length": "2"}, 413, "too_large"),
    ("GET", "/healthz", {"Content-Length": "2"}, 413, "too_large"),
    ("GET", "/metrics", {"Content-Length": "2"}, 413, "too_large"),
    ("GET", "/api/%zz", {}, 400, "bad_request"),
    ("GET", "/.own/problem", {}, 404, "not_found"),
    ("GET", "/.own/come_back", {}, 404, "not_found"),
    ("TRACE", "/api/", {}, 405, "method_not_allowed"),
    ("POST", "/api/", {"Transfer-Encoding": "odd"}, 501, "not_implemented"),
]


@pytest.mark.parametrize(("method", "path", "headers", "status", "code"), REFUSED)
async def test_what_nginx_itself_refuses_is_a_problem(
    start: Start, method: str, path: str, headers: dict[str, str], status: int, code: str
) -> None:
    async with Stub() as stub, start(stub.address) as front:
        answer = await raw(front, method, path, headers)

    assert answer.status_code == status
    assert answer.headers["content-type"] == PROBLEM
    assert (answer.json()["status"], answer.json()["code"]) == (status, code)
    assert_strict(answer)
    assert not stub.asked


@pytest.mark.parametrize(
    ("path", "headers"),
    [
        ("/api/accounts/me", {"Authorization": "Bearer " + "a" * 8192}),  # the longest token the app reads
        ("/events?topics=" + ",".join(["user%3A" + "a" * 128] * 100), {}),  # as many topics as a stream may have
        ("/api/accounts/me", {f"X-{i}": "a" * 10_000 for i in range(3)}),
    ],
)
async def test_a_large_head_that_the_app_can_use_reaches_it(start: Start, path: str, headers: dict[str, str]) -> None:
    async with Stub() as stub, start(stub.address) as front:
        answer = await raw(front, "GET", path, headers)

    assert (answer.status_code, stub.asked[0].target) == (200, path)
    assert headers.items() <= {name.title(): value for name, value in stub.asked[0].headers.items()}.items()


async def raw(front: Front, method: str, path: str, headers: dict[str, str]) -> httpx.Response:
    """Like a client that repairs nothing, and writes all before it reads."""
    reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(front.url).port)
    lines = [f"{name}: {value}" for name, value in {"Host": "x", "Connection": "close", **headers}.items()]
    writer.write("\r\n".join([f"{method} {path} HTTP/1.1", *lines, "", ""]).encode())
    with anyio.fail_after(5):
        await writer.drain()
        first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode().strip().split("\r\n")
        fields = httpx.Headers([(name, value) for name, _, value in (line.partition(": ") for line in lines)])
        body = await reader.readexactly(int(fields["content-length"]))  # nginx stays a while when it refused a body
    writer.close()
    return httpx.Response(int(first.split()[1]), headers=fields, content=body)


FEWER = {"limit_conn calls 200": "limit_conn calls 10", "limit_conn publishes 1000": "limit_conn publishes 20"}


@pytest.mark.parametrize(("path", "limit"), [("/api/session", 10), ("/x", 10), ("/api/publish", 20)])
async def test_an_address_has_so_many_slow_bodies_and_no_more(start: Start, path: str, limit: int) -> None:
    async with Stub() as stub, start(stub.address, changed=FEWER) as front:
        port = httpx.URL(front.url).port
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(limit)]
        with anyio.fail_after(PATIENCE_S):
            for reader, writer in held:
                head = b"POST %b HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n"
                writer.write(head % path.encode())
                await reader.readuntil(b" 100 Continue\r\n\r\n")  # it is counted, and its body is read
                writer.write(b"1")
        answer = await raw(front, "GET", path, {})
        stream = await raw(front, "GET", "/events", {})
        held[0][1].write(b"2")
        await held[0][0].readuntil(b"ok")
        with anyio.fail_after(PATIENCE_S):  # nginx counts a request for a moment after its response
            while (after := await raw(front, "GET", path, {})).status_code == 429:
                await asyncio.sleep(0.05)
        for _, writer in held:
            writer.close()

    assert (answer.status_code, answer.json()["code"], answer.json()["retryable"]) == (429, "too_many", True)
    assert answer.headers["retry-after"] == "2"
    assert_strict(answer)
    assert (stream.status_code, after.status_code) == (200, 200)


QUICK = {"client_header_timeout 20s": "client_header_timeout 1s", "keepalive_timeout 20s": "keepalive_timeout 1s"}
WHOLE = b"GET /api/ HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("before", "trickled"),
    [
        (b"", False),
        (b"GET /api/ HTTP/1.1\r\nHo", False),
        (b"GET /api/ HTTP/1.1\r\nX: ", True),  # each byte in time, the head never whole
        (WHOLE, False),
        (WHOLE + b"GET /api/ HTTP/1.1\r\nX: ", True),
    ],
)
async def test_a_socket_that_is_silent_or_whose_head_is_slow_is_ended(
    start: Start, before: bytes, trickled: bool
) -> None:
    async with Stub() as stub, start(stub.address, changed=QUICK) as front:
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(front.url).port)
        writer.write(before)
        began = time.monotonic()
        with anyio.fail_after(10):
            trickle = asyncio.create_task(_trickle(writer) if trickled else asyncio.sleep(0))
            with suppress(ConnectionResetError):
                while await reader.read(65536):
                    pass
            took_s = time.monotonic() - began
            trickle.cancel()
        writer.transport.abort()

    assert 0.8 < took_s < 2.8
    assert len(stub.asked) == before.count(WHOLE)


async def _trickle(writer: asyncio.StreamWriter) -> None:
    while not writer.is_closing():
        writer.write(b"a")
        await asyncio.sleep(0.1)


# -- What browsers are told -------------------------------------------------------------------------------


def assert_strict(answer: httpx.Response) -> None:
    """It has the security headers, each once, whoever answered."""
    assert {name: answer.headers.get_list(name) for name in SECURITY_HEADERS} == {
        name: [value] for name, value in SECURITY_HEADERS.items()
    }
    for name in ("x-request-id", "cache-control", "content-type", "vary"):
        assert len(answer.headers.get_list(name)) <= 1, name
    assert "strict-transport-security" not in answer.headers  # this is http


def as_the_app(status: str = "200 OK") -> Answer:
    headers = {name.replace("-", "_"): value for name, value in SECURITY_HEADERS.items()}
    return plain(status, b"{}", Content_Type=PROBLEM, X_Request_ID="r1", Strict_Transport_Security="x", **headers)


@pytest.mark.parametrize("path", ["/", "/assets/x.js", "/api/x", "/events", "/healthz", "/readyz", "/metrics"])
@pytest.mark.parametrize("status", ["200 OK", "404 Not Found", "500 Internal Server Error"])
async def test_the_apps_own_headers_are_not_doubled(start: Start, path: str, status: str) -> None:
    async with Stub(as_the_app(status)) as stub, start(stub.address, origins=[LISTED]) as front:
        answer = await raw(front, "GET", path, {"Origin": LISTED})

    assert answer.headers.get_list("strict-transport-security") == ["x"]  # the app's: it was told the scheme
    del answer.headers["strict-transport-security"]
    assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert answer.content == b"{}"
    assert_strict(answer)


@pytest.mark.parametrize("path", ["/", "/api/x", "/events", "/healthz", "/readyz", "/metrics"])
async def test_what_nginx_says_without_replicas_is_as_strict(start: Start, path: str) -> None:
    async with start(nobody_listens()) as front:
        answer = await raw(front, "GET", path, {"X-Request-ID": "r1"})

    assert answer.status_code == (200 if path == "/events" else 502)
    assert answer.headers["x-request-id"] == "r1"
    assert_strict(answer)


LISTED = "https://app.example.org"
OTHER = "http://127.0.0.1:3000"
LISTS = [[LISTED], [LISTED, OTHER], [OTHER, LISTED], [OTHER, LISTED, "https://third.example"]]


@pytest.mark.parametrize("path", ["/events", "/api/x"])
@pytest.mark.parametrize("listed", LISTS)
async def test_a_listed_page_may_read_when_to_come_back(start: Start, path: str, listed: list[str]) -> None:
    async with start(nobody_listens(), origins=listed) as front:
        headers = (await raw(front, "GET", path, {"Origin": LISTED})).headers

    assert headers.get_list("access-control-allow-origin") == [LISTED]
    assert headers.get_list("access-control-allow-credentials") == ["true"]
    assert headers.get_list("access-control-expose-headers") == ["Retry-After, X-Request-ID"]
    assert headers.get_list("vary") == ["Origin"]


@pytest.mark.parametrize(
    "origin",
    [
        "https://evil.example",
        "null",
        "",
        "https://app.example.org.evil.example",
        "https://app.example.or",
        "http://app.example.org",
        "https://evil.example|,https://evil.example,",
        f"https://evil.example,{LISTED}",
        f"{LISTED},https://evil.example",
        f"{LISTED}|x",
        ".*",
        "|",
        ",",
    ],
)
async def test_no_other_page_may(start: Start, origin: str) -> None:
    async with start(nobody_listens(), origins=[LISTED, OTHER]) as front:
        answers = [await raw(front, "GET", path, {"Origin": origin}) for path in ("/events", "/api/x")]

    for answer in answers:
        assert not [name for name in answer.headers if name.startswith("access-control-")]
        assert answer.headers.get_list("vary") == ["Origin"]


async def test_wildcards_apps_and_extensions_are_the_same_pages_as_the_apps(start: Start) -> None:
    async with start(nobody_listens(), origins=[LISTED, *PATTERNS, OTHER]) as front:
        for origin in (LISTED, OTHER, *COVERED):
            headers = (await raw(front, "GET", "/events", {"Origin": origin})).headers
            assert headers.get_list("access-control-allow-origin") == [origin]
        for origin in NOT_COVERED:
            if origin.isprintable():  # nginx itself refuses the others
                answer = await raw(front, "GET", "/events", {"Origin": origin})
                assert not [name for name in answer.headers if name.startswith("access-control-")], origin


@pytest.mark.parametrize("origin", [LISTED, ""])
async def test_without_a_list_there_is_no_word_of_origins(start: Start, origin: str) -> None:
    async with start(nobody_listens()) as front:
        answer = await raw(front, "GET", "/events", {"Origin": origin})

    assert not [name for name in answer.headers if name.startswith("access-control-")]
    assert "vary" not in answer.headers


# -- For those who watch, and the page --------------------------------------------------------------------


async def test_it_is_ready_as_long_as_one_replica_is(start: Start) -> None:
    async with (
        Stub(plain("503 Service Unavailable")) as one,
        Stub() as two,
        start(one.address, two.address) as front,
        front.client() as client,
    ):
        with_one = {(await client.get("/readyz")).status_code for _ in range(6)}
        two.answer = one.answer
        with_none = {(await client.get("/readyz")).status_code for _ in range(6)}

    assert (with_one, with_none) == ({200}, {503})


async def test_a_file_of_the_page_that_one_replica_lacks_comes_from_another(start: Start) -> None:
    lacking = plain("404 Not Found", b"{}")
    async with (
        Stub(lacking) as one,
        Stub(lacking) as two,
        Stub(plain(body=b"let a = 1;")) as three,
        start(one.address, two.address, three.address) as front,
        front.client() as client,
    ):
        answers = [await client.request(method, "/assets/index-a1.js") for method in ["GET", "HEAD"] * 6]

    assert {answer.status_code for answer in answers} == {200}
    assert len(three.asked) == 12
    assert one.asked
    assert two.asked


async def test_a_file_that_no_replica_has_is_asked_of_each_once_and_takes_none_out(start: Start) -> None:
    async def answer(asked: Asked, writer: asyncio.StreamWriter) -> None:
        own = asked.target == "/api/publish"
        await (plain() if own else plain("404 Not Found", b'{"code":"x"}'))(asked, writer)

    async with (
        Stub(answer) as one,
        Stub(answer) as two,
        start(one.address, two.address) as front,
        front.client() as client,
    ):
        missing = [await client.get("/assets/index-a1.js") for _ in range(10)]
        asked = [len(one.asked), len(two.asked)]
        elsewhere = [await client.get(path) for path in ["/other", "/api/x"] for _ in range(5)]
        published = [(await client.post("/api/publish", content=b"{}")).status_code for _ in range(10)]

    assert {(got.status_code, got.content) for got in [*missing, *elsewhere]} == {(404, b'{"code":"x"}')}
    assert asked == [10, 10]
    assert len(one.asked) + len(two.asked) == 20 + len(elsewhere) + len(published)
    assert published == [200] * 10
    assert {stub.asked[-1].target for stub in (one, two)} == {"/api/publish"}


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
async def test_only_reading_is_asked_of_another_replica(start: Start, method: str) -> None:
    lacking = plain("404 Not Found", b"{}")
    async with (
        Stub(lacking) as one,
        Stub(lacking) as two,
        start(one.address, two.address) as front,
        front.client() as client,
    ):
        answer = await client.request(method, "/assets/index-a1.js")

    assert (answer.status_code, answer.json()["code"]) == (405, "method_not_allowed")
    assert len(one.asked) + len(two.asked) == 0


async def test_the_page_is_compressed_and_its_headers_are_the_apps(start: Start) -> None:
    script = b"let a = 1;\n" * 1000
    page = plain("200 OK", script, Content_Type="text/javascript", Content_Security_Policy="default-src 'self'")
    async with Stub(page) as stub, start(stub.address) as front, front.client() as client:
        answer = await client.get("/assets/index.js", headers={"Accept-Encoding": "gzip"})

    assert answer.content == script
    assert answer.headers["content-encoding"] == "gzip"
    assert answer.headers["content-security-policy"] == "default-src 'self'"
    assert answer.headers["server"] == "nginx"
