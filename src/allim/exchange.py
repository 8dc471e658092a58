"""One request and its response: the object that middleware, access and routes share, kept in the scope."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Protocol

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import Scope

from allim.networks import is_host

_KEY = "allim.exchange"


class _Names(dict[str, bytes]):
    """Header names encoded as in a scope, each encoded once. All callers use constant names, so this is bounded."""

    def __missing__(self, name: str) -> bytes:
        raw = self[name] = name.lower().encode("latin-1")
        return raw


_NAMES = _Names()


class Fields(Headers):
    """The headers of a request, with an index: Starlette's `Headers` scans all of them at each lookup.

    Shape: `get` returns the first of repeated headers, as Starlette's does.
    """

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


class FixedHeaders:
    """Headers that are the same in every response.

    Shape: `lines` are the encoded header lines.
    """

    def __init__(self, headers: Mapping[str, str]) -> None:
        self.headers = MappingProxyType(headers)
        self.names = frozenset(name.encode() for name in headers)
        self.lines = b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items())


class Outcome(Protocol):
    """The outcome of work that has been done before the regular path: headers, and a response or an error."""

    @property
    def headers(self) -> Mapping[str, str]: ...

    def response(self) -> Response: ...


NO_HEADERS = FixedHeaders({})


class Exchange:
    """The state of one request.

    Shape: `extra_headers` has lower-case names; its headers are added to the response, unless the response sets them
    itself (`vary` is merged). Code that writes response headers itself must add these, and `fixed_headers`.
    `answer_at_once` writes a complete response in one call; it returns False, having written nothing, if the regular
    path must send it. `outcome` and `started_at` are set for a request that the fast path has handled before.
    Units: `started_at` by `time.perf_counter`, 0 for now.
    """

    __slots__ = ("answer_at_once", "extra_headers", "fields", "fixed_headers", "outcome", "request_id", "started_at")

    def __init__(self) -> None:
        self.request_id: str | None = None
        self.extra_headers: dict[str, str] = {}
        self.fixed_headers = NO_HEADERS
        self.answer_at_once: Callable[[Response], bool] | None = None
        self.outcome: Outcome | None = None
        self.started_at = 0.0
        self.fields: Fields | None = None


def exchange_of(scope: Scope) -> Exchange:
    """Return the exchange of a scope. The first call makes it."""
    exchange: Exchange | None = scope.get(_KEY)
    if exchange is None:
        exchange = scope[_KEY] = Exchange()
    return exchange


def fields_of(scope: Scope) -> Fields:
    """Return the headers of a scope, which are indexed once."""
    exchange = exchange_of(scope)
    if exchange.fields is None:
        exchange.fields = Fields(scope)
    return exchange.fields
