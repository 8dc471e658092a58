"""Who comes in: by session cookie, by bearer token, and to a stream also by ticket.

Source: RFC 6750 (Bearer), RFC 6265bis (cookies).
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from allim.errors import Forbidden, TooMany, Unauthenticated
from allim.http.addresses import network_of
from allim.http.rates import Policy, Rates
from allim.http.tickets import Tickets
from allim.http.tokens import Tokens
from allim.hub import Toll
from allim.identity import OPERATOR, Identity, Visitor

HERE = "this machine"  # the address of those who came without a proxy
COOKIE = "allim_session"
HASHING_AT_ONCE = 150  # calls that hash a password, of one address on one replica: a part of the line they wait in


class Limits(NamedTuple):
    """How often each may call: a signed-in user; an address without a session; one who tries to be a certain user."""

    user_calls: Policy
    address_calls: Policy
    sign_in_tries: Policy


class Gate:
    """Knows the signed-in user of a request: token good, session not ended, not asking too often."""

    def __init__(self, tokens: Tokens, tickets: Tickets, rates: Rates, limits: Limits) -> None:
        self._tokens = tokens
        self._tickets = tickets
        self._rates = rates
        self._limits = limits
        self._hashing: Counter[str] = Counter()

    async def recognise(self, request: Request) -> Identity:
        """Return whose token this is, whether or not its session has ended and whatever its times say: it is for
        ending the session, and this machine's clock may be wrong. So the call is counted against its address.

        Raises: Unauthenticated; TooMany; Unavailable when it cannot be known now.
        """
        identity = await self._tokens.verify_signature(token_of(request))
        await self.stop_guessing(request)
        return identity

    async def identify(self, request: Request) -> Identity:
        """Who asks.

        Raises: as `recognise`; SignedOut, Kicked.
        """
        identity = await self._tokens.verify(token_of(request))
        await self.count(request, identity)
        return identity

    async def count(self, request: Request, identity: Identity) -> None:
        """Judge the session and count the call, in one. A call of an ended session is its address': who has a stolen
        one keeps its owner out of nothing.

        Raises: SignedOut, Kicked; TooMany; Unavailable.
        """
        try:
            await self._rates.take(request, (self._limits.user_calls, identity.subject), holder=identity)
        except Unauthenticated:
            await self.stop_guessing(request)
            raise

    async def require_operator(self, request: Request) -> Identity:
        """Who asks, when that is an operator.

        Raises: as `identify`; Forbidden.
        """
        identity = await self.identify(request)
        if identity.role != OPERATOR:
            raise Forbidden("Only an operator may do this.")
        return identity

    async def visit(self, request: Request) -> Visitor:
        """Who wants a stream: the token or ticket is good. The session is judged, and the call counted, when the
        stream is admitted (see `toll`), or by `count`.

        Raises: Unauthenticated; Unavailable when it cannot be known now.
        """
        ticket = request.query_params.get("ticket")
        if ticket is None:
            visitor = Visitor(await self._tokens.verify(token_of(request)))
        else:
            visitor = self._tickets.visitor(ticket, request)
        return visitor._replace(address=network_of(request))

    def toll(self, request: Request, visitor: Visitor) -> Toll:
        """What a stream takes: it is a call of its user."""
        calls, who = self._limits.user_calls, visitor.identity.subject
        return Toll([calls.demand(who)], partial(self._rates.settle, request, calls, who))

    async def stop_guessing(self, request: HTTPConnection, email: str = "") -> None:
        """Count a call of somebody who is not signed in, and a try to sign in as somebody.

        Shape: `email` in the one form under which an account is found; "" when it can be nobody's.
        The tries are counted by address too: who tries passwords elsewhere keeps nobody out.
        Raises: TooMany.
        """
        network = network_of(request) or HERE
        wanted = [(self._limits.address_calls, network)]
        if email:
            wanted.append((self._limits.sign_in_tries, f"{email} {network}"))
        await self._rates.take(request, *wanted)

    @contextmanager
    def hashing(self, request: Request) -> Iterator[None]:
        """Around a call that hashes a password: no address takes up the whole line.

        Raises: TooMany.
        """
        network = network_of(request) or HERE
        if self._hashing[network] >= HASHING_AT_ONCE:
            self._rates.refused("hashing")
            raise TooMany("Too many sign in from this address at this moment.", 1)
        self._hashing[network] += 1
        try:
            yield
        finally:
            self._hashing[network] -= 1
            if not self._hashing[network]:
                del self._hashing[network]


def bearer_of(connection: HTTPConnection) -> str | None:
    """The credentials of `Authorization: Bearer`."""
    said = connection.headers.get("authorization")
    if said is None:
        return None
    credentials = bearer_in(said.encode("latin-1"))
    return None if credentials is None else credentials.decode("latin-1")


def bearer_in(said: bytes) -> bytes | None:
    """The credentials in what an `Authorization` says, when its scheme is Bearer."""
    scheme, _, credentials = said.partition(b" ")
    return credentials.strip() if scheme.lower() == b"bearer" else None


def token_of(connection: HTTPConnection) -> str:
    """The request's token: `Authorization: Bearer` wins, then the session cookie.

    Raises: Unauthenticated.
    """
    token = bearer_of(connection)
    if token is None:
        token = connection.cookies.get(COOKIE)
    if not token:
        raise Unauthenticated("Sign in first.")
    return token


def set_cookie(connection: HTTPConnection, response: Response, token: str, max_age_s: int) -> None:
    """Keep the token in the browser, out of reach of scripts and of other sites' requests."""
    secure = connection.url.scheme == "https"
    response.set_cookie(COOKIE, token, max_age=max_age_s, path="/", httponly=True, samesite="lax", secure=secure)


def clear_cookie(connection: HTTPConnection, response: Response) -> None:
    """Have the browser forget the token."""
    set_cookie(connection, response, "", 0)
