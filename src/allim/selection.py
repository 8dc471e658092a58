"""The domains of a replica, in the order of opening, with their settings."""

from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from allim.catalogue import EventType
from allim.domains.choice import chosen, in_order
from allim.domains.domain import Domain
from allim.domains.settings import DomainSettings, read, variables
from allim.errors import Unusable
from allim.requirements import needing
from allim.settings import Settings, SettingsError, naming
from allim.variables import PREFIX


class Selection(NamedTuple):
    """Shape: each domain stands after the ones that it needs; `settings` are by name of domain."""

    domains: tuple[Domain, ...]
    settings: Mapping[str, DomainSettings | None]

    @property
    def stored(self) -> bool:
        """Whether one of the domains needs the database."""
        return any(domain.migrations is not None for domain in self.domains)

    def events(self) -> list[EventType]:
        """The types of events that the domains declare."""
        return [event for domain in self.domains for event in domain.events]

    def migrations(self) -> dict[str, Path]:
        """The folders of migrations by name, in the order in which they are applied: background work first."""
        of_domains = {domain.name: domain.migrations for domain in self.domains if domain.migrations is not None}
        if not of_domains:
            return {}
        from allim.work import MIGRATIONS  # with SQLAlchemy

        return {"work": MIGRATIONS, **of_domains}

    def equal(self) -> dict[str, str]:
        """The domains, and their settings that must be the same on every replica, by the name of the variable."""
        names = {f"{PREFIX}DOMAINS": ",".join(sorted(domain.name for domain in self.domains))}
        return names | {
            variable.name: str(getattr(self.settings[domain.name], variable.field))
            for domain in self.domains
            for variable in variables(domain.name, domain.settings)
            if variable.equal
        }


def select(settings: Settings, domains: Sequence[Domain] | None = None) -> Selection:
    """Return these domains, or those that ALLIM_DOMAINS names, with their settings.

    Raises: SettingsError.
    """
    with naming("DOMAINS"):
        found = chosen(settings.domains) if domains is None else in_order(domains)
    faults: list[str] = []
    by_name: dict[str, DomainSettings | None] = {}
    for domain in found:
        try:
            own = read(domain.name, domain.settings, settings.variables) if domain.settings else None
            by_name[domain.name] = own
        except ValueError as error:
            faults.append(str(error))
    if faults:
        raise SettingsError("; ".join(faults))
    selection = Selection(found, by_name)
    if selection.stored:
        stored = ", ".join(domain.name for domain in found if domain.migrations is not None)
        with naming("DOMAINS", Unusable), needing("storage", f"the database of {stored}"):
            import_module("allim.work")  # and the storage, which it imports
    return selection
