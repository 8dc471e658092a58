"""The form of a topic."""

import re

from allim.errors import Invalid

# A byte that has no character of its own here, percent-encoded. Each key has one spelling: capital digits, and no
# escape for a character that needs none.
_ESCAPE_FORM = r"%([0189A-F][0-9A-F]|2[0-9A-CF]|3[A-F]|40|5[B-E]|60|7[B-DF])"
KEY_FORM = rf"([A-Za-z0-9._~-]|{_ESCAPE_FORM}){{1,1020}}"  # holds any subject: 255 characters of at most 4 bytes
TOPIC_FORM = rf"[a-z][a-z0-9_-]{{0,63}}(:{KEY_FORM})?"
_TOPIC = re.compile(TOPIC_FORM + r"\Z", re.ASCII)
MAX_TOPICS = 100  # on one stream, beside the user's own


def check_topic(topic: str, field: str = "topic") -> str:
    """Return the topic if it is well-formed.

    Raises: Invalid naming `field`. The text is not repeated: it may hold anything.
    """
    if not _TOPIC.match(topic):
        raise Invalid.field(
            field,
            "must look like `name` or `name:key` (a-z0-9_- before the colon, A-Za-z0-9._~- after; "
            "any other byte of UTF-8 as %XX)",
        )
    return topic
