"""Publishing: what is sent, which answers are final, and what is known after a failure."""

import json
from collections.abc import Awaitable, Callable

import pytest
from harness.replicas import PUBLISH_KEY, Replica
from harness.servers import free_port

from allim.client import ClientError, NotConfirmed, Published
from tests.client.publishing import Kind, both, publishing
from tests.client.scripted import ACCEPTED, PROBLEM, Answer, answer, hang_up, in_json, page, problem, scripted

pytestmark = pytest.mark.anyio


@both
async def test_an_event_is_sent_as_json_with_the_key(kind: Kind) -> None:
    with scripted(ACCEPTED) as server:
        async with publishing(kind, server.url + "/") as publish:
            published = await publish("user:1", "t", {"ü": 1})

    [asked] = server.asked
    assert published == Published(("5-0",), "memory")
    assert asked.line == "POST /api/publish HTTP/1.1"
    assert asked.headers["authorization"] == "Bearer the-key"
    assert json.loads(asked.body) == {"topic": "user:1", "type": "t", "data": {"ü": 1}}
    assert len(asked.headers["idempotency-key"]) >= 16


@both
async def test_a_batch_is_a_list_and_gives_an_id_each(kind: Kind) -> None:
    with scripted(in_json(202, {"ids": ["5-0", "5-1"], "durability": "disk"})) as server:
        async with publishing(kind, server.url) as publish:
            published = await publish([("a", "t", 1), ("b", "t", 2)])

    assert published == Published(("5-0", "5-1"), "disk")
    assert json.loads(server.asked[0].body) == [
        {"topic": "a", "type": "t", "data": 1},
        {"topic": "b", "type": "t", "data": 2},
    ]


PASSING = {
    **{f"problem {status}": problem(status) for status in (408, 425, 429, 500, 502, 503, 504)},
    **{f"page {status}": page(status) for status in (408, 425, 429, 500, 501, *range(520, 531))},
    "a page of a deploy": page(404),
    "a static page, posted to": page(405),
    "an empty folder": page(403),
    "somebody else's problem": in_json(404, {"type": "about:blank", "status": 404}, content_type=PROBLEM),
    "a page with 200": page(200),
    "a page with 202": page(202),
    "a 202 in an unknown encoding": answer(202, b"\x8b\x00", content_encoding="br", content_type="application/json"),
    "a 202 that is no gzip": answer(202, b"{}", content_encoding="gzip", content_type="application/json"),
    "a hang-up": hang_up,
}  # fmt: skip


@both
@pytest.mark.parametrize("failure", PASSING.values(), ids=PASSING)
async def test_a_failure_that_may_pass_is_tried_again_under_the_same_key(kind: Kind, failure: Answer) -> None:
    with scripted(failure, failure, ACCEPTED) as server:
        async with publishing(kind, server.url) as publish:
            published = await publish("a", "t", 1)

    assert published.ids == ("5-0",)
    assert len(server.asked) == 3
    assert len(server.keys) == 1
    assert len({asked.body for asked in server.asked}) == 1


@both
async def test_two_calls_have_two_keys_and_a_given_one_is_kept(kind: Kind) -> None:
    with scripted(ACCEPTED) as server:
        async with publishing(kind, server.url) as publish:
            await publish("a", "t", 1)
            await publish("a", "t", 1)
            await publish("a", "t", 1, idempotency_key="mine")

    assert len(server.keys) == 3
    assert "mine" in server.keys


@both
@pytest.mark.parametrize("status", [400, 401, 403, 404, 405, 409, 413, 415, 422, 431])
async def test_a_refusal_of_allim_is_final_and_nothing_is_stored(kind: Kind, status: int) -> None:
    with scripted(problem(status)) as server:
        async with publishing(kind, server.url) as publish:
            with pytest.raises(ClientError, match=r"^no$") as caught:
                await publish("a", "t", 1)

    assert (caught.value.status, caught.value.problem["code"]) == (status, "c")
    assert len(server.asked) == 1


UNKNOWN = {
    "a proxy's time-out": page(524),
    "allim's 503": problem(503),
    "a hang-up": hang_up,
    "a page of a proxy": page(404),
}


@both
@pytest.mark.parametrize("failure", UNKNOWN.values(), ids=UNKNOWN)
async def test_without_an_answer_it_may_be_stored_and_the_key_is_told(kind: Kind, failure: Answer) -> None:
    with scripted(failure) as server:
        async with publishing(kind, server.url) as publish:
            with pytest.raises(NotConfirmed, match="may be stored") as caught:
                await publish("a", "t", 1, timeout_s=1)

    assert len(server.asked) > 1
    assert server.keys == {caught.value.idempotency_key}
    assert str(caught.value).endswith(f"key {caught.value.idempotency_key}")
    assert caught.value.may_be_stored


async def not_confirmed(publish: Callable[..., Awaitable[object]]) -> NotConfirmed:
    """The error of a publish whose last attempt had an answer: on a busy machine its time may be over before."""
    for _ in range(10):
        with pytest.raises(NotConfirmed) as caught:
            await publish("a", "t", 1, timeout_s=2)
        if "no whole answer in time" not in str(caught.value):
            break
    return caught.value


@both
async def test_a_page_that_lasts_says_that_the_url_may_be_wrong(kind: Kind) -> None:
    with scripted(page(404)) as server:
        async with publishing(kind, server.url) as publish:
            error = await not_confirmed(publish)

    assert "HTTP status 404, not from allim; check that this is its URL" in str(error)


@both
async def test_a_rate_that_stays_used_up_has_stored_nothing(kind: Kind) -> None:
    with scripted(problem(429)) as server:
        async with publishing(kind, server.url) as publish:
            error = await not_confirmed(publish)

    assert "HTTP status 429; the event is not stored" in str(error)
    assert not error.may_be_stored


@both
async def test_where_nobody_listens_nothing_is_stored(kind: Kind) -> None:
    async with publishing(kind, f"http://127.0.0.1:{free_port()}") as publish:
        with pytest.raises(NotConfirmed) as caught:
            await publish("a", "t", 1, timeout_s=1)

    assert not caught.value.may_be_stored


@both
async def test_a_refusal_after_an_attempt_without_an_answer_is_not_certain(kind: Kind) -> None:
    with scripted(page(524), problem(401, detail="The publish key is not known.")) as server:
        async with publishing(kind, server.url) as publish:
            with pytest.raises(NotConfirmed, match=r"may be stored") as caught:
                await publish("a", "t", 1)

    assert isinstance(caught.value.__cause__, ClientError)
    assert "The publish key is not known." in str(caught.value)


@both
async def test_a_refusal_after_a_used_up_rate_is_certain(kind: Kind) -> None:
    with scripted(problem(429), problem(403)) as server:
        async with publishing(kind, server.url) as publish:
            with pytest.raises(ClientError):
                await publish("a", "t", 1)


# -- redirects -----------------------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("status", [307, 308])
async def test_a_redirect_on_the_same_origin_is_followed_with_everything(kind: Kind, status: int) -> None:
    with scripted(answer(status, location="/v2/api/publish"), ACCEPTED) as server:
        async with publishing(kind, server.url) as publish:
            await publish("a", "t", 1)

    first, second = server.asked
    assert second.line == "POST /v2/api/publish HTTP/1.1"
    assert (second.body, second.token, server.keys) == (first.body, "the-key", {first.headers["idempotency-key"]})


@both
@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_the_key_goes_to_no_other_origin(kind: Kind, status: int) -> None:
    with scripted(ACCEPTED) as other, scripted(answer(status, location=f"{other.url}/api/publish?a=b")) as server:
        async with publishing(kind, server.url) as publish:
            with pytest.raises(ClientError, match=f"redirects to {other.url}/api/publish, another origin") as caught:
                await publish("a", "t", 1)

    assert caught.value.status == status
    assert len(server.asked) == 1
    assert other.asked == []


@both
async def test_a_redirect_that_changes_the_method_is_refused(kind: Kind) -> None:
    with scripted(answer(301, location="/new/api/publish")) as server:
        async with publishing(kind, server.url) as publish:
            with pytest.raises(ClientError, match="turns a POST into a GET"):
                await publish("a", "t", 1)


@both
async def test_redirects_in_a_circle_end(kind: Kind) -> None:
    with scripted(answer(307, location="/api/publish")) as server:
        async with publishing(kind, server.url) as publish:
            with pytest.raises(ClientError, match="more than 5 redirects"):
                await publish("a", "t", 1)

    assert len(server.asked) == 6


# -- what cannot be ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["example.org", "", "ftp://example.org", "http://", "http://a:b"])
@both
def test_a_url_that_is_none_is_refused_at_once(kind: Kind, url: str) -> None:
    with pytest.raises(ValueError, match=r"^url: "):
        kind(url, "k")


@pytest.mark.parametrize("key", ["", "secret\n", "pässword", "a b"])
@both
def test_a_key_that_no_header_holds_is_refused_and_not_repeated(kind: Kind, key: str) -> None:
    with pytest.raises(ValueError, match=r"^key: ") as caught:
        kind("http://127.0.0.1", key)

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
@both
async def test_a_time_that_is_none_is_refused(kind: Kind, timeout_s: float) -> None:
    with pytest.raises(ValueError, match=r"^timeout_s: "):
        kind("http://127.0.0.1", "k", timeout_s=timeout_s)
    async with publishing(kind, "http://127.0.0.1") as publish:
        with pytest.raises(ValueError, match=r"^timeout_s: "):
            await publish("a", "t", 1, timeout_s=timeout_s)


@pytest.mark.parametrize("key", ["", "a b", "ü", "x" * 257])
@both
async def test_an_idempotency_key_that_is_none_is_refused(kind: Kind, key: str) -> None:
    async with publishing(kind, "http://127.0.0.1") as publish:
        with pytest.raises(ValueError, match=r"^idempotency_key: "):
            await publish("a", "t", 1, idempotency_key=key)


# -- against a real replica ----------------------------------------------------------------------------------------


@both
async def test_the_real_server_accepts_and_knows_the_key_again(server: Replica, kind: Kind) -> None:
    key = f"k-{kind.__name__}"
    async with publishing(kind, server.url, PUBLISH_KEY) as publish:
        first = await publish("user:1", "t", 1, idempotency_key=key)
        again = await publish("user:1", "t", 1, idempotency_key=key)
        batch = await publish([("user:1", "t", 2), ("user:1", "t", 3)])
        with pytest.raises(ClientError) as caught:
            await publish("user:1", "t", 2, idempotency_key=key)

    assert first == again
    assert len(batch.ids) == 2
    assert caught.value.status == 409


@both
async def test_a_wrong_key_is_refused(server: Replica, kind: Kind) -> None:
    async with publishing(kind, server.url, "wrong") as publish:
        with pytest.raises(ClientError) as caught:
            await publish("user:1", "t", 1)

    assert caught.value.status == 401
