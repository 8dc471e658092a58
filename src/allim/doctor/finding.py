"""One thing that the doctor has looked at."""

from typing import NamedTuple


class Finding(NamedTuple):
    """One checked subject. Shape: `advice` is a remedy, empty if none is needed."""

    subject: str
    ok: bool
    detail: str
    advice: str = ""
