"""The client names a user's topic as the replica does; it imports nothing of the replica."""

import pytest

from allim import client, identity


@pytest.mark.parametrize("subject", ["42", "auth0|x y@z", "a.b_c~d-e", "김", "%7C", "a:b/c+d="])
def test_a_users_topic_is_that_of_the_replica(subject: str) -> None:
    assert client.user_topic(subject) == identity.user_topic(subject)
