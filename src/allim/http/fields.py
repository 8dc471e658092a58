"""The headers of a request, with an index: Starlette's `Headers` scans all of them at each lookup."""

from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

from allim.networks import is_host

_KEPT = "allim.fields"


class _Names(dict[str, bytes]):
    """Header names encoded as in a scope, each encoded once. All callers use constant names, so this is bounded."""

    def __missing__(self, name: str) -> bytes:
        raw = self[name] = name.lower().encode("latin-1")
        return raw


_NAMES = _Names()


class Fields(Headers):
    """Shape: `get` returns the first of repeated headers, as Starlette's does."""

    def __init__(self, scope: Scope) -> None:
        fields = scope["headers"]
        super().__init__(raw=fields if type(fields) is list else list(fields))
        self._first = dict(reversed(self._list))

    def get(self, key: str, default: Any = None) -> Any:
        value = self._first.get(_NAMES[key])
        return default if value is None else value.decode("latin-1")

    def one_host(self) -> bool:
        """Return whether `Host` is absent, or given once and well-formed."""
        host = self._first.get(b"host", b"")
        repeated = len(self._first) < len(self._list) and len(self.getlist("host")) > 1
        return not repeated and (not host or is_host(host))


def fields_of(scope: Scope) -> Fields:
    """Return the headers of a scope. They are indexed once and kept in the scope."""
    fields: Fields | None = scope.get(_KEPT)
    if fields is None:
        fields = scope[_KEPT] = Fields(scope)
    return fields
