"""docker-compose.yml as it would run, read without Docker."""

import re
from collections.abc import Mapping
from typing import Any

import yaml  # type: ignore[import-untyped]

from harness.replicas import ROOT

PATH = ROOT / "docker-compose.yml"
_VARIABLE = re.compile(r"\$\$|\$\{(\w+)(:?)-([^{}]*)\}")


def services(environ: Mapping[str, str]) -> dict[str, Any]:
    """Every service, with the variables of this environment filled in."""
    return _part("services", environ)


def networks(environ: Mapping[str, str]) -> dict[str, Any]:
    """Every network, likewise."""
    return _part("networks", environ)


def _part(name: str, environ: Mapping[str, str]) -> dict[str, Any]:
    part: dict[str, Any] = yaml.safe_load(filled_in(PATH.read_text(), environ))[name]
    return part


def filled_in(text: str, environ: Mapping[str, str]) -> str:
    """Fill in variables as Compose does: `$$` is a `$`; an empty value is none in `${NAME:-default}`, and one in
    `${NAME-default}`.
    """

    def value(found: re.Match[str]) -> str:
        name, colon, default = found.groups()
        if name is None:
            return "$"
        return environ.get(name) or default if colon else environ.get(name, default)

    return _VARIABLE.sub(value, text)
