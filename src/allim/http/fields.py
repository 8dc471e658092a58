"""The fields of a request's head, each found at once: Starlette's `Headers` goes through all of them every time."""

import re
from functools import lru_cache
from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

_KEPT = "allim.fields"
LONGEST_HOST = 255  # a name of DNS, RFC 1035
_HOST = re.compile(r"(?:[A-Za-z0-9._~-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{0,5})?", re.ASCII)


class _Names(dict[str, bytes]):
    """Names of fields as they stand in a scope, each made once: who asks for one has it in the code."""

    def __missing__(self, name: str) -> bytes:
        raw = self[name] = name.lower().encode("latin-1")
        return raw


_NAMES = _Names()


class Fields(Headers):
    """Shape: of a field that came several times `get` gives the first, as Starlette's does."""

    def __init__(self, scope: Scope) -> None:
        fields = scope["headers"]
        super().__init__(raw=fields if type(fields) is list else list(fields))
        self._first = dict(reversed(self._list))

    def get(self, key: str, default: Any = None) -> Any:
        value = self._first.get(_NAMES[key])
        return default if value is None else value.decode("latin-1")

    def one_host(self) -> bool:
        """Return whether `Host` is absent, or stands there once and is one."""
        host = self.get("host", "")
        repeated = len(self._first) < len(self._list) and len(self.getlist("host")) > 1
        return not repeated and is_host(host)


def is_host(text: str) -> bool:
    """Return whether this is a host, with or without a port, or nothing. Source: RFC 9110, 7.2."""
    return not text or (len(text) <= LONGEST_HOST and _matches(text))


@lru_cache(maxsize=256)
def _matches(text: str) -> bool:
    return _HOST.fullmatch(text) is not None


def fields_of(scope: Scope) -> Fields:
    """The request's fields, made for the first who asks."""
    fields: Fields | None = scope.get(_KEPT)
    if fields is None:
        fields = scope[_KEPT] = Fields(scope)
    return fields
