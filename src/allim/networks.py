"""Hosts and networks. Limits per address count an IPv6 address under its /64 and the wider networks around it.

Source: RFC 6177 (a site gets a /64 to a /48).
"""

import re
from collections import Counter
from functools import lru_cache
from ipaddress import IPv6Network
from typing import NamedTuple

SUBSCRIBER_PREFIX = 64  # the smallest network of a subscriber: a limit per single address would have no effect
WIDER_PREFIXES = (56, 48)  # a subscriber may have a /48, which holds 65,536 networks of /64
_HOST = re.compile(rb"(?:[A-Za-z0-9._~%-]{1,255}|\[[0-9A-Za-z:.%_~-]{2,64}\])(?::[0-9]{0,5})?\Z")
TIMES = 4  # the limit of a network, as a multiple of the limit of the next narrower one


class Share(NamedTuple):
    """A network, and its limit as a multiple of the limit of one address.

    Shape: `suffix` distinguishes the limits of wider networks: `/56`; "" for the address itself.
    """

    network: str
    times: int
    suffix: str


@lru_cache(maxsize=4096)  # clients come back, and together from one network
def shares_of(address: str) -> tuple[Share, ...]:
    """Return the networks under which a client at this address is counted, from narrow to wide.

    Shape: `address` is an IPv4 address, an IPv6 /64, or any other text, which is counted by itself.
    """
    shares = [Share(address, 1, "")]
    if address.endswith(f"/{SUBSCRIBER_PREFIX}"):
        for prefix in WIDER_PREFIXES:
            wider = IPv6Network(address).supernet(new_prefix=prefix)
            shares.append(Share(str(wider), shares[-1].times * TIMES, f"/{prefix}"))
    return tuple(shares)


class Places:
    """Counts clients by address and by the wider networks of the address. The address "" is not counted.

    Shape: `per_address` is the limit of one address.
    """

    def __init__(self, per_address: int) -> None:
        self._per_address = per_address
        self.taken: Counter[str] = Counter()

    def has_room(self, address: str) -> bool:
        """Return whether one more client may enter from this address."""
        shares = shares_of(address) if address else ()
        return all(self.taken[share.network] < self._per_address * share.times for share in shares)

    def enter(self, address: str) -> None:
        if address:
            self.taken.update([share.network for share in shares_of(address)])

    def leave(self, address: str) -> None:
        """Remove a client that has entered."""
        for share in shares_of(address) if address else ():
            self.taken[share.network] -= 1
            if not self.taken[share.network]:
                del self.taken[share.network]


@lru_cache(maxsize=256)
def is_host(value: bytes) -> bool:
    """Return whether this is a host, with or without a port. Source: RFC 9110, 7.2, and RFC 3986, 3.2.2."""
    return bool(_HOST.match(value))
