import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Annotated, Self

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ModelWrapValidatorHandler, StringConstraints, model_validator
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from allim.errors import Invalid
from allim.http import bodies
from allim.http.bodies import MAX_CONTAINERS, Body, parse, parse_json, read_json_or_nothing, read_model
from allim.http.routing import route
from tests.http.apps import assert_problem, client_of

JSON = {"Content-Type": "application/json"}


class Inner(Body):
    some_topic: str


class Thing(Body):
    email: str
    password: Annotated[str, StringConstraints(min_length=8)] = "long enough"
    count: int = 0
    inner: list[Inner] = Field(default_factory=list)


async def post(body: bytes | AsyncIterator[bytes], headers: dict[str, str] | None = None) -> httpx.Response:
    async def thing(request: Request) -> Response:
        return JSONResponse((await read_model(request, Thing, max_bytes=1000)).model_dump())

    async with client_of([route("/", post=thing)]) as client:
        return await client.post("/", content=body, headers=JSON if headers is None else headers)


@pytest.mark.anyio
async def test_a_good_body_is_read() -> None:
    response = await post(b'{"email": "a", "inner": [{"someTopic": "b"}]}')

    assert response.json() == {"email": "a", "password": "long enough", "count": 0, "inner": [{"someTopic": "b"}]}


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("body", "fields"),
    [
        (b"{}", ["email"]),
        (b"[]", ["body"]),
        (b"null", ["body"]),
        (b'{"email": 1}', ["email"]),
        (b'{"email": null}', ["email"]),
        (b'{"email": "a", "count": "1"}', ["count"]),
        (b'{"email": "a", "count": true}', ["count"]),
        (b'{"email": "a", "count": 1.0}', ["count"]),
        (b'{"email": "a", "extra": 1, "more": 2}', ["extra", "more"]),
        (b'{"email": "a", "inner": [{"someTopic": "b"}, {"someTopic": 1}]}', ["inner[1].someTopic"]),
        (b'{"email": "a", "inner": [{"some_topic": "b"}]}', ["inner[0].someTopic", "inner[0].some_topic"]),
        (b'{"email": "a", "inner": {}}', ["inner"]),
    ],
)
async def test_wrong_fields_are_named(body: bytes, fields: list[str]) -> None:
    assert_problem(await post(body), 422, "invalid", *fields)


@pytest.mark.anyio
async def test_secrets_are_not_repeated() -> None:
    response = await post(b'{"email": ["hunter2"], "password": "hunter2"}')

    assert_problem(response, 422, "invalid", "email", "password")
    assert "hunter2" not in response.text
    assert response.json()["errors"][1]["message"] == "must have at least 8 characters"


@pytest.mark.anyio
@pytest.mark.parametrize(
    "content_type",
    ["", "text/plain", "application/x-www-form-urlencoded", "application/jsonp", "application/json; charset=latin-1"],
)
async def test_other_content_types_are_refused(content_type: str) -> None:
    assert_problem(await post(b"{}", {"Content-Type": content_type}), 415, "unsupported_media_type", "Content-Type")


@pytest.mark.anyio
@pytest.mark.parametrize("content_type", ["application/json", 'Application/JSON; charset="UTF-8"'])
async def test_json_in_utf8_is_accepted(content_type: str) -> None:
    assert (await post(b'{"email": "a"}', {"Content-Type": content_type})).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize("body", [b"", b" \n"])
async def test_an_empty_body_is_called_empty(body: bytes) -> None:
    response = await post(body)

    assert_problem(response, 422, "invalid", "body")
    assert "empty" in response.json()["detail"]


@pytest.mark.anyio
async def test_a_body_over_the_limit_is_refused_announced_or_not() -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(11):
            yield b" " * 100

    assert_problem(await post(b" " * 1001), 413, "too_large", "body")
    assert_problem(await post(chunks()), 413, "too_large", "body")
    assert (await post(b'{"email": "a"}'.ljust(1000))).status_code == 200


@pytest.mark.anyio
@pytest.mark.parametrize(("body", "status"), [(b"", 200), (b"{}", 200), (b"{", 422), (b'{"a":1}', 200)])
async def test_a_body_may_be_left_out_where_the_route_says_so(body: bytes, status: int) -> None:
    async def any_body(request: Request) -> Response:
        return JSONResponse(await read_json_or_nothing(request))

    async with client_of([route("/", post=any_body)]) as client:
        response = await client.post("/", content=body, headers=JSON if body else {})

    assert response.status_code == status


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"a": 1,}', "line 1, column"),
        (b'{\n"a": tru}', "line 2, column 6"),
        (b'{"a": 1} x', "line 1, column 10"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
        (b'{"a": 1, "a": 2}', '"a" twice'),
        (b'{"a": [{"b": 1, "b": 1}]}', '"b" twice'),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": -Infinity}', "-Infinity"),
        (b'{"a": 1e999}', "too large"),
        (b'{"a": ' + b"1" * 5000 + b"}", "too long"),
        (b'"\xff"', "UTF-8 at byte 2"),
        (b'"\xed\xa0\x80"', "UTF-8"),
        (rb'"\ud800"', "surrogate"),
        (rb'{"\uDC00": 1}', "surrogate"),
        (b"[" * 100_000, "deep"),
        (b"[" * 65 + b"]" * 65, "deep"),
        (b'{"a":' * 65 + b"1" + b"}" * 65, "deep"),
        (b'[{"a":' * 33 + b"1" + b"}]" * 33, "deep"),
        (b"[" + b"[]," * 100 + b"[" * 64 + b"]" * 64 + b"]", "deep"),
        (b"[" + b"[]," * MAX_CONTAINERS + b"1]", "arrays and objects"),
        (b"[" + b"{ }," * MAX_CONTAINERS + b"1]", "arrays and objects"),
        (rb'["\\","' + b'",[],"' * MAX_CONTAINERS + b'"]', "arrays and objects"),
        (b"[" * 50 + b"}" * 50 + b"[]" * 50, "column 51"),
        (b"[" * 50 + b'"' + b"]" * 50, "column 51"),
    ],
)
def test_what_parsers_may_understand_differently_is_refused(body: bytes, said: str) -> None:
    with pytest.raises(Invalid, match="body: ") as refusal:
        parse_json(body)

    assert said in refusal.value.detail
    assert [field.field for field in refusal.value.fields] == ["body"]


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 64 + b"]" * 64,
        rb'"\ud83d\ude00"',
        b"[" + b"[]," * (MAX_CONTAINERS - 1) + b"1]",
        b'["' + b"[{" * MAX_CONTAINERS + rb'\"[[\\"]',
        rb'{"\"[\\": "' + b"[" * 70 + b'"}',
        '"\U0001f600"'.encode(),
    ],
)
def test_what_is_merely_unusual_is_accepted(body: bytes) -> None:
    assert parse_json(body) == json.loads(body)


def test_a_body_of_too_many_containers_is_refused_before_it_is_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    parsed: list[str] = []
    monkeypatch.setattr(bodies, "_decode", parsed.append)

    for body in (b"[" + b"[]," * 700_000 + b"1]", b"[" + (b"[" * 65 + b"]" * 65 + b",") * 10_000 + b"1]"):
        with pytest.raises(Invalid):
            parse_json(body)

    assert parsed == []


def test_the_path_begins_where_the_value_stood() -> None:
    with pytest.raises(Invalid) as refusal:
        parse(Thing, {"email": 1}, under="[3]")

    assert refusal.value.fields[0].field == "[3].email"


def test_of_very_many_unknown_names_few_are_described() -> None:
    judged: list[int] = []

    class Counted(Thing):
        @model_validator(mode="wrap")
        @classmethod
        def judge(cls, value: dict[str, object], handler: ModelWrapValidatorHandler[Self]) -> Self:
            judged.append(len(value))
            return handler(value)

    with pytest.raises(Invalid) as refusal:
        parse(Counted, {**{f"{n}": 1 for n in range(200_000)}, "email": "a", "count": "wrong"})

    assert judged[0] <= 30
    assert refusal.value.fields[0].field == "count"
    assert len(refusal.value.fields) == 20


def test_a_long_unknown_name_is_cut_and_many_are_counted_out() -> None:
    with pytest.raises(Invalid) as refusal:
        parse(Thing, {"email": "a", **{f"{n}" + "x" * 500: 1 for n in range(500)}})

    assert len(refusal.value.fields) == 20
    assert len(refusal.value.detail) < 3000


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(),
        lambda some: st.lists(some) | st.dictionaries(st.text(), some),
    )
)
def test_any_json_survives(value: object) -> None:
    assert parse_json(json.dumps(value).encode()) == value


@given(st.binary())
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    with suppress(Invalid):
        parse_json(body)
