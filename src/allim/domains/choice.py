"""The choice of domains: by name, of the built-in ones and of installed packages, in the order of opening."""

import re
from collections.abc import Iterable, Sequence
from contextlib import suppress
from graphlib import CycleError, TopologicalSorter
from importlib.metadata import EntryPoint, entry_points

from allim.domains.builtin import BUILT_IN, EXTRAS
from allim.domains.domain import Domain
from allim.errors import Unusable
from allim.requirements import needing

GROUP = "allim.domains"
_NAME = re.compile(r"[a-z][a-z0-9_]{0,31}")
_RESERVED = {"work"}  # has tables of its own


def chosen(names: Sequence[str]) -> tuple[Domain, ...]:
    """Return the domains with these names, each after the ones that it needs.

    Only the chosen domains are imported.
    Raises: ValueError for an unknown name and for a package that cannot be imported; as `in_order`.
    """
    return in_order([_load(name) for name in dict.fromkeys(names)])


def known(names: Iterable[str]) -> list[Domain]:
    """Return the domains with these names that are there and can be imported."""
    found = []
    for name in dict.fromkeys(names):
        with suppress(ValueError):
            found.append(_load(name))
    return found


def in_order(domains: Sequence[Domain]) -> tuple[Domain, ...]:
    """Return the domains, each after the ones that it needs, else in the given order.

    Raises: ValueError for a wrong name, a name given twice, a needed domain that is not there, and a cycle.
    """
    by_name: dict[str, Domain] = {}
    for domain in domains:
        if not _NAME.fullmatch(domain.name) or domain.name in _RESERVED:
            raise ValueError(f"{domain.name!r} is no name of a domain: a-z first, then a-z 0-9 _, 32 at most")
        if domain.name in by_name:
            raise ValueError(f"there are two domains with the name {domain.name}")
        by_name[domain.name] = domain
    for domain in domains:
        for needed in domain.needs:
            if needed not in by_name:
                raise ValueError(f"{domain.name} needs {needed}, which is not among the domains")
    try:
        order = list(TopologicalSorter({domain.name: domain.needs for domain in domains}).static_order())
    except CycleError as error:
        raise ValueError(f"these domains need each other: {' → '.join(error.args[1])}") from None
    return tuple(by_name[name] for name in order)


def _load(name: str) -> Domain:
    """Raises: ValueError."""
    point = EntryPoint(name, BUILT_IN[name], GROUP) if name in BUILT_IN else _installed(name)
    try:
        with needing(EXTRAS.get(name, "storage"), f"the domain {name}"):
            domain = point.load()
    except Unusable:
        raise
    except Exception as error:
        raise ValueError(f"{name} cannot be imported: {type(error).__name__}: {error}") from error
    if not isinstance(domain, Domain) or domain.name != name:
        raise ValueError(f"the entry point {name} ({point.value}) is not a Domain with this name")
    return domain


def _installed(name: str) -> EntryPoint:
    """Raises: ValueError."""
    points = {point.name: point for point in entry_points(group=GROUP)}
    if name not in points:
        names = sorted({*points, *BUILT_IN})
        raise ValueError(f"there is no domain {name!r}; these are there: {', '.join(names)}")
    return points[name]
