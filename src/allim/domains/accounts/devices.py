"""The device that a request comes from, in the short form in which its owner knows it again."""

import re
from typing import NamedTuple

from starlette.requests import HTTPConnection

from allim.access.addresses import network_of

# The order matters: most browsers also name the ones that they are compatible with.
_BROWSERS = {
    "Edg": "Edge",
    "OPR": "Opera",
    "SamsungBrowser": "Samsung Internet",
    "Firefox": "Firefox",
    "FxiOS": "Firefox",
    "CriOS": "Chrome",
    "Chrome": "Chrome",
    "Safari": "Safari",
}
_SYSTEMS = {
    "iPhone": "iPhone",
    "iPad": "iPad",
    "Android": "Android",
    "Windows": "Windows",
    "CrOS": "ChromeOS",
    "Mac OS X": "macOS",
    "Linux": "Linux",
}
_PRODUCT = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,39}")


class Device(NamedTuple):
    """Shape: `address` is an IPv4 address or an IPv6 /64; `agent` such as `Firefox on Linux`; None is unknown."""

    address: str | None = None
    agent: str | None = None


def device_of(connection: HTTPConnection) -> Device:
    """Return the device of a request."""
    return Device(network_of(connection) or None, short_agent(connection.headers.get("user-agent", "")))


def short_agent(text: str) -> str | None:
    """Return browser and system of a `User-Agent`, or the name of its first product; None if it names none."""
    browser = _first(_BROWSERS, text)
    system = _first(_SYSTEMS, text)
    if browser and system:
        return f"{browser} on {system}"
    product = _PRODUCT.match(text)
    return browser or (product[0] if product else None)


def _first(names: dict[str, str], text: str) -> str | None:
    return next((name for sign, name in names.items() if sign in text), None)
