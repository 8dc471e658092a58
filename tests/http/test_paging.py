from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from allim.errors import Invalid
from allim.http.paging import read_page
from allim.paging import After, Page, decode_cursor, encode_cursor


def page(query: str) -> Page:
    return read_page(Request({"type": "http", "query_string": query.encode(), "headers": []}))


def test_the_first_page_needs_nothing() -> None:
    assert page("") == Page(20, None)


@pytest.mark.parametrize(("limit", "read"), [("1", 1), ("100", 100), ("007", 7)])
def test_limits(limit: str, read: int) -> None:
    assert page(f"limit={limit}").limit == read


@pytest.mark.parametrize("limit", ["0", "101", "-1", "1.5", "", "x", "9999999999", "%D9%A3", "1%0A"])
def test_other_limits_are_refused(limit: str) -> None:
    with pytest.raises(Invalid) as refusal:
        page(f"limit={limit}")

    assert refusal.value.fields[0].field == "limit"


@given(st.floats(allow_nan=False, allow_infinity=False), st.from_regex(r"[A-Za-z0-9._~-]{1,128}", fullmatch=True))
def test_a_cursor_leads_back_to_its_place(time: float, id_: str) -> None:
    after = After(time, id_)

    assert page(f"cursor={encode_cursor(after)}&limit=3") == Page(3, after)


@pytest.mark.parametrize(
    "cursor",
    ["", "x", "ü", "!!!!", "W10", "bnVsbA", "WzEsMl0", "WyJhIiwiYiJd", "W05hTiwgImEiXQ", "WzEsICJhIGIiXQ",
     "WzEsImEiLDNd", "W3RydWUsICJh", "eyJhIjoxfQ", "W" * 4000, encode_cursor(After(1.0, "a")) + " "],
)  # fmt: skip
def test_anything_else_is_no_cursor(cursor: str) -> None:
    with pytest.raises(Invalid) as refusal:
        decode_cursor(cursor)

    assert [field.field for field in refusal.value.fields] == ["cursor"]


@given(st.text())
def test_any_text_is_a_cursor_or_refused(cursor: str) -> None:
    with suppress(Invalid):
        decode_cursor(cursor)


def test_unknown_and_repeated_parameters_are_named() -> None:
    with pytest.raises(Invalid) as refusal:
        page("limit=1&limit=2&offset=3&page=4&page=5")

    assert [field.field for field in refusal.value.fields] == ["offset", "page", "limit"]
