"""A position or a cursor says where, never who: somebody else's gives nothing of theirs, and no refusal tells it."""

import base64
import json
from itertools import count

import pytest
from harness.replicas import token
from harness.sse_parser import Heard, Strict

from tests.hostile.conftest import Target
from tests.hostile.test_frames import event, publish, stream
from tests.hostile.texts import BYTES, TEXTS
from tests.hostile.wire import QUIET_S, Answer, request, say

SNAPSHOTS = "/api/accounts/me/snapshots"
_numbers = count(1)


def opened(target: Target, who: str, last_event_id: str | bytes, *, query: bool, quiet_s: float = QUIET_S) -> Answer:
    """The answer to a stream with this last event ID, with what came at once."""
    auth = {"Authorization": f"Bearer {token(who)}"}
    if query:
        raw = last_event_id.encode() if isinstance(last_event_id, str) else last_event_id
        asked = b"/events?last_event_id=" + b"".join(b"%%%02x" % byte for byte in raw)
        return say(target.port, request("GET", asked, auth), quiet_s=quiet_s).only
    return say(target.port, request("GET", "/events", {**auth, "Last-Event-ID": last_event_id}), quiet_s=quiet_s).only


def events_of(answer: Answer) -> list[Heard]:
    return [one for one in Strict().take([answer.body]) if one.type != "heartbeat"]


def positions(target: Target, who: str, *data: str) -> list[str]:
    ids: list[str] = publish(target, [event(text, topic=f"user:{who}") for text in data]).json()["ids"]
    return ids


@pytest.mark.parametrize("query", [False, True], ids=["header", "query"])
def test_somebody_elses_position_gives_ones_own_events_only(alone: Target, query: bool) -> None:
    ada, eve = f"ada-{next(_numbers)}", f"eve-{next(_numbers)}"
    first, *_ = positions(alone, ada, "ada's first", "ada's second")
    positions(alone, eve, "eve's own")
    positions(alone, ada, "ada's third")

    answer = opened(alone, eve, first, query=query, quiet_s=0.5)

    opening, *events = events_of(answer)
    assert json.loads(opening.data)["resume"] == "complete"
    assert [one.data for one in events] == ['"eve\'s own"']
    assert b"ada" not in answer.body


@pytest.mark.parametrize("query", [False, True], ids=["header", "query"])
@pytest.mark.parametrize(
    "position",
    ["0-0", "1-1", "999999999999999-999999999", "9999999999999999-0", "-1-0", "1-0-0", "01-0", "1-00", "1.5-0", "$",
     "*", "+", "-", "1e400", "１-０", "x" * 3000, "1-" + "9" * 3000],
)  # fmt: skip
def test_a_position_from_nowhere_gives_nothing_of_others(alone: Target, position: str, query: bool) -> None:
    ada, eve = f"ada-{next(_numbers)}", f"eve-{next(_numbers)}"
    positions(alone, ada, "ada's")

    answer = opened(alone, eve, position, query=query)

    assert answer.status == 200
    assert json.loads(events_of(answer)[0].data)["resume"] == "reset"
    assert len(events_of(answer)) == 1
    assert len(answer.body) < 1000


@pytest.mark.parametrize("raw", [*(text.encode() for text in TEXTS.values()), *BYTES.values()], ids=[*TEXTS, *BYTES])
def test_any_text_in_the_query_is_malformed(alone: Target, raw: bytes) -> None:
    answer = opened(alone, "malformed", raw, query=True)

    assert answer.status == 200
    (opening,) = events_of(answer)
    assert json.loads(opening.data)["resume"] == ("reset" if raw else "new")
    assert {reset["reason"] for reset in json.loads(opening.data)["resets"]} == ({"malformed"} if raw else set())


def test_a_topic_of_somebody_else_is_refused_as_one_that_does_not_exist(alone: Target) -> None:
    ada = f"ada-{next(_numbers)}"
    (position,) = positions(alone, ada, "ada's")
    with stream(alone, ada):
        refusals = [
            alone.http.get(
                f"{alone.url}/events?topics={topic}",
                headers={"authorization": f"Bearer {token('eve')}", "last-event-id": position},
            )
            for topic in (f"user:{ada}", "user:" + "0" * len(ada))
        ]

    taken, free = ({**answer.json(), "request_id": ""} for answer in refusals)
    assert [answer.status_code for answer in refusals] == [403, 403]
    assert json.loads(json.dumps(free).replace("0" * len(ada), ada)) == taken
    assert position not in refusals[0].text


# -- Pages ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def ada(either: Target) -> tuple[Target, str, dict[str, str]]:
    """An account with snapshots: the id of one, and the way to ask as another account."""
    tokens = []
    for name in ("ada", "eve"):
        account = {"email": f"{name}-{next(_numbers)}@example.org", "name": name, "password": "long enough"}
        tokens.append(either.http.post(f"{either.url}/api/accounts", json=account).json()["token"])
    as_ada, as_eve = ({"authorization": f"Bearer {who}"} for who in tokens)
    either.http.post(either.url + SNAPSHOTS, headers=as_ada)
    page = either.http.get(f"{either.url}{SNAPSHOTS}?limit=1", headers=as_ada).json()
    return either, f"{page['items'][0]['id']} {page['nextCursor']}", as_eve


def test_somebody_elses_cursor_and_snapshot_give_nothing(ada: tuple[Target, str, dict[str, str]]) -> None:
    target, of_ada, as_eve = ada
    snapshot, cursor = of_ada.split()
    own = target.http.get(target.url + SNAPSHOTS, headers=as_eve).json()["items"]

    page = target.http.get(f"{target.url}{SNAPSHOTS}?cursor={cursor}", headers=as_eve).json()
    theirs = target.http.get(f"{target.url}{SNAPSHOTS}/{snapshot}", headers=as_eve)
    nobodys = target.http.get(f"{target.url}{SNAPSHOTS}/{'0' * len(snapshot)}", headers=as_eve)

    assert {item["id"] for item in page["items"]} <= {item["id"] for item in own}
    assert theirs.status_code == nobodys.status_code == 404
    assert {**theirs.json(), "request_id": ""} == {**nobodys.json(), "request_id": ""}


def _cursor(*parts: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


FORGED = {
    **{
        f"time {number}": _cursor(number, "a")
        for number in (0, -1, 1e308, 10**400, True, None, "1", [1], float("nan"))
    },
    **{f"id {name}": _cursor(1.5, text) for name, text in TEXTS.items()},
    "three parts": _cursor(1.5, "a", "b"),
    "no list": base64.urlsafe_b64encode(b'{"0":1,"1":"a"}').decode(),
    "deep": base64.urlsafe_b64encode(b"[" * 2000).decode(),
    "no base64": "!!!!",
    "one character": "A",
}


@pytest.mark.parametrize("parameter", ["cursor", "limit"])
def test_a_forged_page_is_empty_or_refused(either: Target, parameter: str) -> None:
    headers = {"authorization": f"Bearer {token('nobody')}"}
    for name, value in {**FORGED, **TEXTS}.items():
        answer = either.http.get(either.url + SNAPSHOTS, params={parameter: value}, headers=headers)

        assert answer.status_code in {200, 404, 414, 422}, (name, answer.text)
        if answer.status_code == 422:
            assert [error["field"] for error in answer.json()["errors"]] == [parameter]
            assert len(answer.content) < 600
