"""The settings of domains: a class of its own for each, read from `ALLIM_<DOMAIN>_…`."""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from pydantic import BaseModel, ConfigDict, ValidationError

from allim.variables import PREFIX, line


class DomainSettings(BaseModel):
    """The base of a domain's settings. The field `per_min` of the domain `snapshots` is `ALLIM_SNAPSHOTS_PER_MIN`.

    A field says more with `Field(…, json_schema_extra=…)`: `EQUAL` if it must be equal on all replicas, `variable(…)`
    if its variable has another name, `renamed(…)` if it had another name in an earlier version.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")


EQUAL: dict[str, Any] = {"equal": True}


def variable(name: str) -> dict[str, Any]:
    """Name the variable of a field: all of it, such as `ALLIM_OPERATORS`."""
    return {"variable": name}


def renamed(former: str) -> dict[str, Any]:
    """Name the variable that a field had before. It is still read, with a warning."""
    return {"former": former}


class Variable(NamedTuple):
    """The variable of a field.

    Shape: `former` is its earlier name, "" if it was never renamed; `equal` says that replicas must agree on it.
    """

    field: str
    name: str
    former: str
    equal: bool


def variables(domain: str, settings: type[DomainSettings] | None) -> Iterator[Variable]:
    """Return the variables of a domain's settings."""
    for field, info in settings.model_fields.items() if settings else ():
        extra: Any = info.json_schema_extra or {}
        name = extra.get("variable", f"{PREFIX}{domain}_{field}".upper())
        yield Variable(field, name, extra.get("former", ""), extra.get("equal", False))


def read(domain: str, settings: type[DomainSettings], environ: Mapping[str, str]) -> DomainSettings:
    """Read a domain's settings. An empty variable counts as one that is not set.

    Raises: ValueError naming every wrong variable, without its value.
    """
    names = {}
    given = {}
    for field, name, former, _ in variables(domain, settings):
        names[field] = name if environ.get(name) or not environ.get(former) else former
        if text := environ.get(names[field]):
            given[field] = text
    try:
        return settings.model_validate(given)
    except ValidationError as error:
        details = error.errors(include_url=False)
        lines = [line(names[str(detail["loc"][0])] if detail["loc"] else "", settings, detail) for detail in details]
        raise ValueError("; ".join(lines)) from None
