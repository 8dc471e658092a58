"""Logs hold no secret: looked at whenever a process that a test started has ended.

It knows what secrets look like, and those that tests use. It must not repeat one: an excerpt shows its beginning.
"""

import re
from pathlib import Path

SECRET = "a secret key for tests, and for nothing else"
PUBLISH_KEY = "publish-key-of-the-tests"
PASSWORDS = ("correct horse", "long enough")  # also the beginning of longer ones

_AROUND = 60  # bytes of the log before a secret, enough to find the line that holds it
_SHOWN = 4  # bytes of the secret itself

KINDS = {
    "a token": re.compile(rb"eyJ[\w-]{8,}\.[\w-]{2,}"),
    "a cookie's value": re.compile(rb"(?i)\b(?:__host-)?allim_\w+=[^\s;\"'\\]+"),
    "a bearer's credentials": re.compile(rb"(?i)\bbearer\s+[\w.~+/=-]*\d[\w.~+/=-]*"),
    "the secret key": re.compile(re.escape(SECRET.encode())),
    "a publish key": re.compile(re.escape(PUBLISH_KEY.encode()) + rb"|\bak_[\w-]{8,}"),
    "a provider's word": re.compile(
        rb"(?i)\b(?:client_secret|code_verifier|\w+_token)(?:=|%3d|[\"']+: ?[\"']+)[\w.~-]{6,}"
    ),
    "a ticket": re.compile(rb"(?i)\bticket(?:=|%3d)[^\s&\"'\\]+"),
    "a password": re.compile(b"|".join(re.escape(password.encode()) for password in PASSWORDS)),
    "a password's hash": re.compile(rb"\$argon2\w*\$"),
}

inspected: list[str] = []
"""The name of every log that was looked at in this run."""


class Leak(AssertionError):
    """A secret stands in a log."""


def inspect(log: Path) -> None:
    """Look through all that was written to `log`.

    Raises: Leak naming the kind of secret, with an excerpt that does not repeat it.
    """
    written = log.read_bytes()
    inspected.append(log.name)
    for kind, form in KINDS.items():
        if found := form.search(written):
            raise Leak(f"{log.name} holds {kind}: {_excerpt(written, found)}")


def _excerpt(written: bytes, found: re.Match[bytes]) -> str:
    """What stands before it in its line, and its beginning; other secrets of the line are hidden as well."""
    line_start = written.rfind(b"\n", 0, found.start()) + 1
    before = written[line_start : found.start()]
    for form in KINDS.values():
        before = form.sub(b"[hidden]", before)
    return ascii((before[-_AROUND:] + found[0][:_SHOWN]).decode(errors="replace"))[1:-1] + "…"
