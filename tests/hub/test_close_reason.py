import pytest

from allim.hub import CloseReason

TABLE = [
    # reason, come back, told
    ("drain", True, True),
    ("rotate", True, True),
    ("token_expired", False, True),
    ("kicked", False, True),
    ("signed_out", False, True),
    ("replaced", False, True),
    ("client_left", True, False),
    ("client_vanished", True, False),
    ("client_spoke", True, False),
    ("slow_reader", True, False),
    ("link_failed", True, False),
]


@pytest.mark.parametrize(("word", "reconnect", "told"), TABLE)
def test_who_is_told_and_who_may_come_back(word: str, reconnect: bool, told: bool) -> None:
    reason = CloseReason(word)

    assert (str(reason), reason.reconnect, reason.told) == (word, reconnect, told)


def test_the_table_has_every_reason() -> None:
    assert {word for word, _, _ in TABLE} == set(CloseReason)
