"""The form of a topic."""

import re

from allim.errors import Invalid

TOPIC_FORM = r"[a-z][a-z0-9_-]{0,63}(:[A-Za-z0-9._~-]{1,128})?"
_TOPIC = re.compile(TOPIC_FORM + r"\Z", re.ASCII)
MAX_TOPICS = 100  # on one stream, beside the user's own


def check_topic(topic: str, field: str = "topic") -> str:
    """Return the topic if it is well-formed.

    Raises: Invalid naming `field`. The text is not repeated: it may hold anything.
    """
    if not _TOPIC.match(topic):
        raise Invalid.field(
            field, "must look like `name` or `name:key` (a-z0-9_- before the colon, A-Za-z0-9._~- after)"
        )
    return topic
