"""The choice of domains, their settings, and the order in which they are opened."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from pydantic import Field

from allim.app import create_app
from allim.domains.builtin import BUILT_IN
from allim.domains.choice import chosen, in_order
from allim.domains.domain import Domain, Host, Opened
from allim.domains.settings import EQUAL, DomainSettings, renamed, variable
from allim.selection import select
from allim.settings import SettingsError, load_settings, unknown_settings, warnings

SECRET = {"ALLIM_SECRET_KEY": "0123456789abcdef0123456789abcdef"}


@asynccontextmanager
async def opened(_: Host[None]) -> AsyncIterator[Opened]:
    yield Opened()


def domain(name: str, *needs: str) -> Domain:
    return Domain(name, opened, needs)


def names(domains: tuple[Domain, ...]) -> list[str]:
    return [each.name for each in domains]


def test_each_domain_is_opened_after_those_that_it_needs() -> None:
    assert names(in_order([domain("c", "b", "a"), domain("b", "a"), domain("a")])) == ["a", "b", "c"]
    assert names(chosen(["snapshots", "accounts"])) == ["accounts", "snapshots"]


@pytest.mark.parametrize(
    ("domains", "said"),
    [
        ([domain("a", "b")], "a needs b, which is not among the domains"),
        ([domain("a", "b"), domain("b", "a")], "these domains need each other: a → b → a"),
        ([domain("a"), domain("a")], "there are two domains with the name a"),
        ([domain("A-b")], "'A-b' is no name of a domain: a-z first, then a-z 0-9 _, 32 at most"),
        ([domain("work")], "'work' is no name of a domain: a-z first, then a-z 0-9 _, 32 at most"),
    ],
)
def test_domains_that_cannot_be_opened_are_named_in_one_line(domains: list[Domain], said: str) -> None:
    with pytest.raises(SettingsError) as caught:
        create_app(load_settings(SECRET), domains=domains)

    assert str(caught.value) == f"ALLIM_DOMAINS: {said}"


def test_an_unknown_domain_is_told_with_those_that_are_there() -> None:
    with pytest.raises(SettingsError, match=r"^ALLIM_DOMAINS: there is no domain 'alarms'; these are there: acc"):
        select(load_settings({**SECRET, "ALLIM_DOMAINS": "accounts,alarms"}))


@pytest.mark.parametrize("left_out", sorted(BUILT_IN))
def test_each_built_in_domain_can_be_left_out_unless_another_needs_it(left_out: str) -> None:
    settings = load_settings({**SECRET, "ALLIM_DOMAINS": ",".join(name for name in BUILT_IN if name != left_out)})

    if left_out == "accounts":
        with pytest.raises(SettingsError, match=r"^ALLIM_DOMAINS: snapshots needs accounts, which is not among"):
            select(settings)
    else:
        assert {*names(select(settings).domains), left_out} == {*BUILT_IN}


def test_an_empty_list_is_the_hub_alone() -> None:
    selection = select(load_settings({**SECRET, "ALLIM_DOMAINS": ""}))

    assert (selection.domains, selection.stored, selection.migrations()) == ((), False, {})


# -- Settings ------------------------------------------------------------------------------------------------------


class OrderSettings(DomainSettings):
    per_min: int = Field(10, ge=1, le=100, json_schema_extra=EQUAL)
    note: str = Field("", json_schema_extra=renamed("ALLIM_ORDER_NOTE"))
    shop: str = Field("", json_schema_extra=variable("ALLIM_SHOP"))


ORDERS = Domain("orders", opened, settings=OrderSettings)


def test_a_domain_reads_its_own_variables() -> None:
    environ = {**SECRET, "ALLIM_ORDERS_PER_MIN": "7", "ALLIM_SHOP": "corner", "ALLIM_ORDER_NOTE": "old"}

    selection = select(load_settings(environ), [ORDERS])

    assert selection.settings["orders"] == OrderSettings(per_min=7, note="old", shop="corner")
    assert selection.equal() == {"ALLIM_DOMAINS": "orders", "ALLIM_ORDERS_PER_MIN": "7"}


def test_an_empty_variable_is_as_good_as_none_and_the_present_name_wins() -> None:
    environ = {**SECRET, "ALLIM_ORDERS_PER_MIN": "", "ALLIM_ORDER_NOTE": "old", "ALLIM_ORDERS_NOTE": "new"}

    assert select(load_settings(environ), [ORDERS]).settings["orders"] == OrderSettings.model_validate(
        {"note": "new"}
    )


def test_a_wrong_value_is_named_by_its_variable() -> None:
    with pytest.raises(SettingsError) as caught:
        select(load_settings({**SECRET, "ALLIM_ORDERS_PER_MIN": "101"}), [ORDERS])

    assert str(caught.value) == "ALLIM_ORDERS_PER_MIN: must be a whole number from 1 to 100"


def test_settings_of_domains_are_known_and_slips_are_not() -> None:
    environ = {"ALLIM_SNAPSHOTS_PER_MIN": "1", "ALLIM_OPERATORS": "a", "ALLIM_SNAPSHOTS_PER_MINUTE": "1"}

    assert unknown_settings(environ) == ["ALLIM_SNAPSHOTS_PER_MINUTE"]
    assert warnings(environ) == [
        "ALLIM_SNAPSHOTS_PER_MINUTE is no setting, ignored; did you mean ALLIM_SNAPSHOTS_PER_MIN?"
    ]


def test_a_renamed_setting_is_read_with_a_warning() -> None:
    environ = {**SECRET, "ALLIM_SNAPSHOT_STEP_MS": "5"}

    assert select(load_settings(environ)).settings["snapshots"].step_ms == 5  # type: ignore[union-attr]
    assert warnings(environ) == [
        "ALLIM_SNAPSHOT_STEP_MS is now ALLIM_SNAPSHOTS_STEP_MS; the old name is read until 1.0"
    ]
