"""Who may read what: denied, unless the token or the room of the topic's kind says otherwise."""

import pytest
from harness.streams import identity

from allim.access.permission import Permission
from allim.errors import Forbidden
from allim.identity import Identity

pytestmark = pytest.mark.anyio


class Room:
    """Lets 42 read what is named, and remembers what it was asked."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys
        self.asked: list[tuple[str, str]] = []

    async def rule(self, who: Identity, key: str) -> bool:
        self.asked.append((who.subject, key))
        return who.subject == "42" and key in self.keys


@pytest.mark.parametrize(
    ("grants", "topics"),
    [
        ((), ()),
        ((), ("user:42", "system")),
        (("board",), ("board", "system")),
        (("news:*",), ("news:a", "news:b:c")),
        (("user:*",), ("user:43",)),
    ],
)
async def test_the_own_topics_and_what_the_token_grants_may_be_read(
    grants: tuple[str, ...], topics: tuple[str, ...]
) -> None:
    await Permission({}).require(identity("42", *grants), topics)


@pytest.mark.parametrize(
    ("grants", "topic"),
    [
        ((), "user:43"),
        ((), "user:4"),
        ((), "user:421"),
        ((), "system:1"),
        ((), "nosuch"),
        (("board",), "board:1"),
        (("board",), "boards"),
        (("news:*",), "news"),
        (("news:*",), "newspaper:a"),
        (("news:a",), "news:ab"),
    ],
)
async def test_anything_else_is_forbidden(grants: tuple[str, ...], topic: str) -> None:
    with pytest.raises(Forbidden) as refused:
        await Permission({}).require(identity("42", *grants), ["system", topic])

    assert [field.field for field in refused.value.fields] == ["topics"]


async def test_a_topic_is_decided_by_the_room_of_its_kind() -> None:
    chats, boards = Room("7"), Room("", "8")
    permission = Permission({"chat": chats.rule, "board": boards.rule})

    await permission.require(identity("42"), ["chat:7", "board", "board:8"])
    for topic in ("chat:8", "chat", "board:7", "chats:7", "nosuch:7"):
        with pytest.raises(Forbidden):
            await permission.require(identity("42"), [topic])
    with pytest.raises(Forbidden):
        await permission.require(identity("43"), ["chat:7"])

    assert chats.asked == [("42", "7"), ("42", "8"), ("42", ""), ("43", "7")]


async def test_a_room_is_not_asked_about_what_the_token_grants() -> None:
    chats = Room()

    await Permission({"chat": chats.rule}).require(identity("42", "chat:*"), ["chat:7"])

    assert chats.asked == []


async def test_a_refusal_has_the_same_words_whatever_was_refused() -> None:
    permission = Permission({"chat": Room("7").rule})
    told = set()

    for topic in ("user:43", "chat:8", "nosuch", "nosuch:8"):
        with pytest.raises(Forbidden) as refused:
            await permission.require(identity("42"), [topic])
        told.add((refused.value.detail, refused.value.fields))

    assert len(told) == 1


async def test_a_room_that_fails_lets_nobody_in() -> None:
    async def broken(_: Identity, __: str) -> bool:
        raise LookupError("the room is on fire")

    with pytest.raises(LookupError):
        await Permission({"chat": broken}).require(identity("42"), ["chat:7"])
