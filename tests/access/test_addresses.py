"""Whose address a request counts for."""

import pytest
from starlette.requests import HTTPConnection

from allim.access.addresses import network_of


def network(client: tuple[str, int] | None) -> str:
    return network_of(HTTPConnection({"type": "http", "headers": [], "client": client}))


FORWARDED = 0  # the port the server gives to a client that a trusted proxy named


@pytest.mark.parametrize("port", [FORWARDED, 40_000])
@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("10.0.0.1", "10.0.0.1"),
        ("2001:db8::1", "2001:db8::/64"),
        ("2001:db8::ffff:0:0:1", "2001:db8::/64"),
        ("2001:DB8:0:1::", "2001:db8:0:1::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
    ],
)
def test_it_is_the_ipv4_address_or_the_ipv6_network_of_one_subscriber(host: str, port: int, expected: str) -> None:
    assert network((host, port)) == expected


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "::ffff:127.0.0.1"])
def test_this_machine_is_nobodys_address(host: str) -> None:
    assert network((host, 40_000)) == ""


@pytest.mark.parametrize(
    ("host", "expected"), [("127.0.0.1", "127.0.0.1"), ("::1", "::/64"), ("::ffff:127.0.0.1", "127.0.0.1")]
)
def test_who_came_by_a_proxy_on_this_machine_is_counted(host: str, expected: str) -> None:
    assert network((host, FORWARDED)) == expected


def test_a_connection_without_an_address_is_not_counted() -> None:
    assert network(None) == ""


@pytest.mark.parametrize("host", ["unknown", "", "_hidden", "example.org", "192.0.2.1:80", "1.2.3", "192.0.2.256"])
def test_all_of_whom_a_proxy_tells_no_address_count_as_one(host: str) -> None:
    assert network((host, FORWARDED)) == "unknown"
