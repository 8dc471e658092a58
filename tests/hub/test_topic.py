import pytest

from allim.errors import Invalid
from allim.hub import check_topic


@pytest.mark.parametrize(
    "topic",
    [
        "a",
        "system",
        "user:42",
        "a-b_c9:X.y_z~-",
        "a:0",
        "a" * 64,
        "a:" + "Z" * 1020,
        "a" * 64 + ":" + "b" * 128,
        "user:auth0%7C7",
        "a:%20%25%2F%3A%3F%40%5B%60%7F%F0%9F%A6%89",
        "a:" + "%EA" * 1020,
    ],
)
def test_a_topic_is_a_name_with_or_without_a_key(topic: str) -> None:
    assert check_topic(topic) == topic


@pytest.mark.parametrize(
    "topic",
    [
        "",
        ":",
        "a:",
        ":a",
        "A",
        "9a",
        "_a",
        "-a",
        "a.b",
        "a b",
        "a,b",
        "a*",
        "a:*",
        "a:b:c",
        "a:b c",
        "a:b/c",
        "a:ü",
        "ä",
        "a\n",
        "a:b\n",
        "a:b\r\n",
        "a\0",
        "a:\u2028",
        "a:\ud800",
        "a:{b}",
        "a" * 65,
        "a:" + "b" * 1021,
        # Another spelling of a key would be another topic.
        "a:%7c",
        "a:%41",
        "a:%2D",
        "a:%7E",
        "a:%",
        "a:%2",
        "a:100%",
        "a:%GG",
    ],
)
def test_anything_else_is_refused_by_field_and_not_repeated(topic: str) -> None:
    with pytest.raises(Invalid) as caught:
        check_topic(topic, "topics")

    [error] = caught.value.fields
    assert error.field == "topics"
    assert len(topic) < 3 or topic not in caught.value.detail
