"""Hosts, and how limits per address see IPv6: as a subscriber's network, and the wider ones that it may have.

Source: RFC 6177 (a site gets a /64 to a /48).
"""

import re
from collections import Counter
from functools import lru_cache
from ipaddress import IPv6Network
from typing import NamedTuple

SUBSCRIBER_PREFIX = 64  # the least that one subscriber gets: a limit per single address would have no effect
WIDER_PREFIXES = (56, 48)  # a /48 holds 65,536 of the former, and may be one subscriber's as well
_HOST = re.compile(rb"(?:[A-Za-z0-9._~%-]{1,255}|\[[0-9A-Za-z:.%_~-]{2,64}\])(?::[0-9]{0,5})?\Z")
TIMES = 4  # as much as a network is granted, the next wider one is granted so many times


class Share(NamedTuple):
    """A network, and how many times the limit of one address it has.

    Shape: `suffix` tells the limits of wider networks apart: `/56`; "" for the address itself.
    """

    network: str
    times: int
    suffix: str


@lru_cache(maxsize=4096)  # clients come back, and together from one network
def shares_of(address: str) -> tuple[Share, ...]:
    """Everything that something from this address counts against, from narrow to wide.

    Shape: `address` is an IPv4 address, an IPv6 /64, or any other text, which stands for itself alone.
    """
    shares = [Share(address, 1, "")]
    if address.endswith(f"/{SUBSCRIBER_PREFIX}"):
        for prefix in WIDER_PREFIXES:
            wider = IPv6Network(address).supernet(new_prefix=prefix)
            shares.append(Share(str(wider), shares[-1].times * TIMES, f"/{prefix}"))
    return tuple(shares)


class Places:
    """Counts by address and by the wider networks it is in, against a limit. The address "" is not counted.

    Shape: `per_address` is the limit of one address.
    """

    def __init__(self, per_address: int) -> None:
        self._per_address = per_address
        self.taken: Counter[str] = Counter()

    def has_room(self, address: str) -> bool:
        """Return whether one more may come from this address."""
        shares = shares_of(address) if address else ()
        return all(self.taken[share.network] < self._per_address * share.times for share in shares)

    def enter(self, address: str) -> None:
        if address:
            self.taken.update([share.network for share in shares_of(address)])

    def leave(self, address: str) -> None:
        """Forget one that has entered."""
        for share in shares_of(address) if address else ():
            self.taken[share.network] -= 1
            if not self.taken[share.network]:
                del self.taken[share.network]


@lru_cache(maxsize=256)
def is_host(value: bytes) -> bool:
    """Return whether this is a host, with or without a port. Source: RFC 9110, 7.2, and RFC 3986, 3.2.2."""
    return bool(_HOST.match(value))
