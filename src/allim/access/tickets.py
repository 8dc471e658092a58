"""Tickets open a stream for clients that can send neither a cookie nor a header, such as a cross-origin
`EventSource`.

A ticket is short-lived and opens one stream once, so it may appear in a URL. When the browser reconnects, it requests
the same URL, whose ticket is spent, and adds the last event ID. So every id on such a stream carries a proof that
only its reader knows: `<position>~<proof>`. A spent ticket together with the proof resumes the stream until the token
expires with which the ticket was made. A spent ticket alone, for instance from a log, opens nothing; the proof
appears in no URL.
"""

import base64
import hashlib
import hmac
import secrets
import time
from collections.abc import Callable, Sequence
from typing import Any

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey
from starlette.requests import HTTPConnection

from allim.errors import Invalid, Unauthenticated
from allim.identity import ALLIM, Identity, Ticket, Visitor

MAX_CHARS = 6000  # with the rest of its request line it must fit into 8 KiB, the limit of many proxies

_ALGORITHMS = ["HS256"]


class Tickets:
    """Issues and reads tickets. The first key signs, all keys verify."""

    def __init__(
        self,
        secret_keys: Sequence[str],
        lifetime_s: int,
        now: Callable[[], float] = time.time,
        shared_now: Callable[[], float] | None = None,
    ) -> None:
        """Units: Unix seconds. A token's expiry is compared with `now`, a ticket's with `shared_now`, the clock that
        all replicas share: the clocks of two machines may differ by more than the lifetime of a ticket.
        """
        # Derived keys: a ticket is not accepted as a token, nor a token as a ticket.
        self._keys = [OctKey.import_key(_derived(key, b"allim ticket")) for key in secret_keys]
        self._proof_keys = [_derived(key, b"allim ticket proof") for key in secret_keys]
        self.lifetime_s = lifetime_s
        self._now = now
        self._shared_now = shared_now or now

    def issue(self, identity: Identity, topics: Sequence[str]) -> str:
        """Return a ticket for a stream of the identity's own topics and these, which it may read now.

        Raises: Invalid naming `topics` if the ticket would be too long for a URL.
        """
        claims = {
            "jti": secrets.token_urlsafe(16),
            "sub": identity.subject,
            "sid": identity.session,
            "iss": identity.issuer,  # `authorize` may ask for it
            "role": identity.role,  # rules may ask for it
            "iat": identity.issued_at,
            "kick": identity.after_kick,
            "exp": self._shared_now() + self.lifetime_s,
            "until": identity.expires_at,
            "topics": list(topics),
            # The other topics are granted by rules, which are asked again whenever the ticket is used.
            "grants": [topic for topic in topics if identity.may_read(topic)],
        }
        ticket = jwt.encode({"alg": "HS256"}, claims, self._keys[0], algorithms=_ALGORITHMS)
        if len(ticket) > MAX_CHARS:
            raise Invalid.field("topics", "are too many, or too long, for the URL of a stream")
        return ticket

    def visitor(self, ticket: str, connection: HTTPConnection) -> Visitor:
        """Return the visitor with this ticket, which is unspent or comes with the proof of its stream.

        Raises: Unauthenticated.
        """
        at, claims = self._claims(ticket)
        identity = Identity(
            claims["sub"],
            claims["sid"],
            claims["until"],
            tuple(claims["grants"]),
            claims["role"],
            claims["iat"],
            claims.get("kick"),
            claims.get("iss", ALLIM),
        )
        topics = tuple(claims["topics"])
        proof = _proof(self._proof_keys[at], claims["jti"])
        _, _, sent = connection.headers.get("last-event-id", "").partition("~")
        if identity.expires_at <= self._now():
            raise Unauthenticated("The session has expired; sign in again.", reason="expired")
        if hmac.compare_digest(sent.encode(), proof.encode()):
            return Visitor(identity, topics=topics, proof=proof)
        left_s = claims["exp"] - self._shared_now()
        if left_s <= 0:
            raise Unauthenticated("The ticket has expired; get a new one.", reason="ticket_expired")
        return Visitor(identity, topics=topics, ticket=Ticket(claims["jti"], left_s + 1), proof=proof)

    def _claims(self, ticket: str) -> tuple[int, dict[str, Any]]:
        """Return the index of the key that signed the ticket, and its claims."""
        if len(ticket) <= MAX_CHARS:
            for at, key in enumerate(self._keys):
                try:
                    return at, dict(jwt.decode(ticket, key, algorithms=_ALGORITHMS).claims)
                except (JoseError, ValueError, TypeError, RecursionError):
                    continue
        raise Unauthenticated("The ticket is not valid; get a new one.", reason="ticket_invalid")


def _derived(secret_key: str, purpose: bytes) -> bytes:
    return hmac.digest(secret_key.encode(), purpose, hashlib.sha256)


def _proof(key: bytes, ticket_id: str) -> str:
    """Return 22 characters that are safe in a header and need no CORS preflight in `Last-Event-ID`."""
    return base64.urlsafe_b64encode(hmac.digest(key, ticket_id.encode(), hashlib.sha256)[:16]).decode().rstrip("=")
