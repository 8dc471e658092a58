"""The fields of a request's head, each found at once: Starlette's `Headers` goes through all of them every time."""

from typing import Any

from starlette.datastructures import Headers
from starlette.types import Scope

from allim.networks import is_host

_KEPT = "allim.fields"


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
        host = self._first.get(b"host", b"")
        repeated = len(self._first) < len(self._list) and len(self.getlist("host")) > 1
        return not repeated and (not host or is_host(host))


def fields_of(scope: Scope) -> Fields:
    """The request's fields, made for the first who asks."""
    fields: Fields | None = scope.get(_KEPT)
    if fields is None:
        fields = scope[_KEPT] = Fields(scope)
    return fields
