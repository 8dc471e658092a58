"""The networks that an address counts against."""

import pytest

from allim.networks import Share, shares_of


def test_an_ipv6_subscriber_counts_against_the_wider_networks_too() -> None:
    assert shares_of("2001:db8:1:2345::/64") == (
        Share("2001:db8:1:2345::/64", 1, ""),
        Share("2001:db8:1:2300::/56", 4, "/56"),
        Share("2001:db8:1::/48", 16, "/48"),
    )


@pytest.mark.parametrize("address", ["192.0.2.1", "unknown", "this machine", ""])
def test_any_other_address_stands_for_itself(address: str) -> None:
    assert shares_of(address) == (Share(address, 1, ""),)
