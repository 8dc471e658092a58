"""Authenticates requests: by session cookie, by bearer token, and streams also by ticket.

Source: RFC 6750 (Bearer), RFC 6265bis (cookies).
"""

from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import NamedTuple
from urllib.parse import unquote

from starlette.requests import HTTPConnection, Request
from starlette.responses import Response

from allim.access.addresses import network_of
from allim.access.authenticate import Authenticate, authenticated
from allim.access.rates import Policy, Rates
from allim.access.tickets import Tickets
from allim.access.tokens import Tokens
from allim.access.turns import Turns
from allim.errors import Forbidden, OtherUser, Unauthenticated
from allim.hub import Charge
from allim.identity import OPERATOR, Identity, Visitor
from allim.networks import shares_of

HERE = "this machine"  # the address of requests without a proxy
COOKIE = "allim_session"
USER_HEADER = "Allim-User"  # the user that a page shows, percent-encoded; another one may have signed in since
HASHING_AT_ONCE = 2  # passwords; each takes about 64 MiB and a core for 50 ms


class Limits(NamedTuple):
    """Rates: calls of a signed-in user; calls of an address without a session; tries to sign in as one user; calls of
    an address with an ended session; calls of an address with an unknown publish key.
    """

    user_calls: Policy
    address_calls: Policy
    sign_in_tries: Policy
    ended_calls: Policy
    unknown_keys: Policy


class Gate:
    """Knows the signed-in user of a request: token good, session not ended, not asking too often.

    Shape: `cookie` is the name of the cookie that holds the token; `authenticate` is asked before tokens.
    """

    def __init__(
        self,
        tokens: Tokens,
        tickets: Tickets,
        rates: Rates,
        limits: Limits,
        *,
        cookie: str = COOKIE,
        authenticate: Authenticate | None = None,
    ) -> None:
        self.cookie = cookie
        self._authenticate = authenticate
        self._tokens = tokens
        self._tickets = tickets
        self._rates = rates
        self._limits = limits
        self._hashing = Turns(HASHING_AT_ONCE, partial(rates.refused, "hashing"))

    async def recognise(self, request: Request) -> Identity:
        """Return the token's identity, also if its session has ended and if its times are wrong: it is for
        ending the session, and this machine's clock may be wrong. So the call is counted against its address.

        Raises: Unauthenticated; TooMany; OtherUser; Unavailable when it cannot be known now.
        """
        identity = await self._authenticated(request)
        if identity is None:
            identity = await self._tokens.verify_signature(self.token_of(request))
        await self.stop_guessing(request)
        _check_user(request, identity)
        return identity

    async def identify(self, request: Request) -> Identity:
        """Return the identity of the request.

        Raises: as `recognise`; SignedOut, Kicked.
        """
        identity = await self._verified(request)
        await self.count(request, identity)
        _check_user(request, identity)
        return identity

    async def _verified(self, request: HTTPConnection) -> Identity:
        identity = await self._authenticated(request)
        if identity is None:
            return await self._tokens.verify(self.token_of(request))
        return self._tokens.not_expired(identity)

    async def _authenticated(self, request: HTTPConnection) -> Identity | None:
        return None if self._authenticate is None else await authenticated(self._authenticate, request)

    def token_of(self, connection: HTTPConnection) -> str:
        """Return the request's token: `Authorization: Bearer` wins, then the cookie.

        Raises: Unauthenticated.
        """
        token = self.token_in(connection)
        if not token:
            raise Unauthenticated("Sign in first.")
        return token

    def token_in(self, connection: HTTPConnection) -> str | None:
        """Return the request's token as `token_of`, None if there is none."""
        token = bearer_of(connection)
        return connection.cookies.get(self.cookie) if token is None else token

    def set_cookie(self, connection: HTTPConnection, response: Response, token: str, max_age_s: int) -> None:
        """Keep the token in the browser, out of reach of scripts and of other sites' requests."""
        secure = connection.scope["scheme"] == "https"
        path = connection.scope.get("root_path") or "/"  # a mounted application keeps to its own paths
        response.set_cookie(
            self.cookie, token, max_age=max_age_s, path=path, httponly=True, samesite="lax", secure=secure
        )

    def clear_cookie(self, connection: HTTPConnection, response: Response) -> None:
        """Have the browser forget the token."""
        self.set_cookie(connection, response, "", 0)

    async def limit(self, request: Request, identity: Identity, policy: Policy) -> None:
        """Count a user's call that has a limit of its own, beside that of all calls.

        Raises: TooMany.
        """
        await self._rates.charge(request, (policy, identity.subject))

    async def count(self, request: HTTPConnection, identity: Identity) -> None:
        """Count the call, and refuse it if its session has ended, in one step. A refused call is charged to the
        caller's address, so a stolen token cannot use up its owner's limit.

        Raises: SignedOut, Kicked; TooMany; Unavailable.
        """
        try:
            await self._rates.charge(request, (self._limits.user_calls, identity.subject), holder=identity)
        except Unauthenticated:
            await self.count_ended(request)
            raise

    async def require_operator(self, request: Request) -> Identity:
        """Return the identity of the request if it is an operator's.

        Raises: as `identify`; Forbidden.
        """
        identity = await self.identify(request)
        if identity.role != OPERATOR:
            raise Forbidden("Only an operator may do this.")
        return identity

    async def visit(self, request: HTTPConnection) -> Visitor:
        """Return the client that asks for a stream, by its token or ticket. Its session is checked, and the call
        counted, when the stream is admitted (see `charge`), or by `count`.

        Raises: Unauthenticated; Unavailable when it cannot be known now.
        """
        ticket = request.query_params.get("ticket")
        if ticket is not None:
            return self._tickets.visitor(ticket, request)._replace(address=network_of(request))
        return Visitor(await self._verified(request), network_of(request))

    def charge(self, request: HTTPConnection, visitor: Visitor) -> Charge:
        """Return the rate-limit charges for opening a stream: it counts as a call of its user."""
        calls, user = self._limits.user_calls, visitor.identity.subject
        return Charge([calls.demand(user)], partial(self._rates.report_or_count, request, calls, user))

    async def stop_guessing(self, request: HTTPConnection, email: str = "") -> None:
        """Count a call without a session, and an attempt to sign in.

        Shape: `email` in the one form under which an account is found; "" if no account can have it.
        Attempts are counted by address too, so guesses from one address do not refuse the owner at another.
        Raises: TooMany.
        """
        network = network_of(request) or HERE
        wanted = []
        for share in shares_of(network):
            wanted.append((self._limits.address_calls.times(share), share.network))
            if email:
                wanted.append((self._limits.sign_in_tries.times(share), f"{email} {share.network}"))
        await self._rates.charge(request, *wanted)

    async def count_ended(self, request: HTTPConnection) -> None:
        """Count a call whose session has ended. The count is of the address, and apart from that of sign-ins: pages
        that come back after a sign-out, again and again, use up no sign-ins of their address.

        Raises: TooMany.
        """
        await self.limit_address(request, self._limits.ended_calls)

    async def count_unknown_key(self, request: HTTPConnection) -> None:
        """Count a question for a publish key, by address, and apart from sign-ins as well.

        Raises: TooMany.
        """
        await self.limit_address(request, self._limits.unknown_keys)

    async def limit_address(self, request: HTTPConnection, policy: Policy) -> None:
        """Count a call that has a limit of its own by its address, and by the networks around it.

        Raises: TooMany.
        """
        shares = shares_of(network_of(request) or HERE)
        await self._rates.charge(request, *((policy.times(share), share.network) for share in shares))

    def hashing(self, request: Request) -> AbstractAsyncContextManager[None]:
        """Wait for a turn to hash a password, for a request with a body that has been read.

        Raises: as `Turns.turn`.
        """
        return self._hashing.turn(request, network_of(request) or HERE)


def _check_user(request: Request, identity: Identity) -> None:
    """Raises: OtherUser."""
    meant = request.headers.get(USER_HEADER)
    if meant is not None and unquote(meant) != identity.subject:
        raise OtherUser("Another user has signed in meanwhile; load the page again.")


def bearer_of(connection: HTTPConnection) -> str | None:
    """The credentials of `Authorization: Bearer`."""
    said = connection.headers.get("authorization")
    if said is None:
        return None
    credentials = bearer_in(said.encode("latin-1"))
    return None if credentials is None else credentials.decode("latin-1")


def bearer_in(said: bytes) -> bytes | None:
    """Return the credentials of an `Authorization` header with the scheme Bearer."""
    scheme, _, credentials = said.partition(b" ")
    return credentials.strip() if scheme.lower() == b"bearer" else None
