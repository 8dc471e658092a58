"""One thing that the doctor has looked at."""

from typing import NamedTuple


class Finding(NamedTuple):
    """Shape: `advice` is what to do, empty when nothing."""

    what: str
    ok: bool
    detail: str
    advice: str = ""
