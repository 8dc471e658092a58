"""The address that a request is counted under by limits."""

from functools import lru_cache
from ipaddress import IPv6Address, ip_address, ip_network

from starlette.requests import HTTPConnection

from allim.networks import SUBSCRIBER_PREFIX

LONGEST = 64  # characters of an address, with its zone
UNKNOWN = "unknown"  # of a trusted proxy that forwards no address: all of its clients count as one


def network_of(connection: HTTPConnection) -> str:
    """The client's IPv4 address or IPv6 /64, as a trusted proxy gives it; "" if it is not counted.

    The server gives a forwarded client the port 0. A loopback client with a port of its own came without a proxy: it
    is on this machine, and no address at all.
    """
    client: tuple[str, int] | None = connection.scope.get("client")
    if client is None:
        return ""
    host, port = client
    return _network(host, forwarded=not port) if len(host) <= LONGEST else UNKNOWN


@lru_cache(maxsize=4096)
def network_of_peer(host: str, proxies: tuple[str, ...]) -> str:
    """The network by which a peer's connections are counted.

    "" for a peer that is not counted: a trusted proxy, whose connections are those of many clients, and this machine.
    """
    network = _network(host, forwarded=False)
    if not network or network == UNKNOWN:
        return network
    address = ip_address(host.partition("%")[0])
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return "" if any(address in ip_network(proxy, strict=False) for proxy in proxies) else network


@lru_cache(maxsize=4096)  # clients come back, and together from one network
def _network(host: str, *, forwarded: bool) -> str:
    try:
        address = ip_address(host)
    except ValueError:
        return UNKNOWN
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            if address.is_loopback and not forwarded:
                return ""
            return str(ip_network((address, SUBSCRIBER_PREFIX), strict=False))
        address = address.ipv4_mapped
    return "" if address.is_loopback and not forwarded else str(address)
