"""Tickets: what opens a stream where neither a cookie nor a header can go, such as `EventSource` of another origin.

A ticket is short-lived and opens one stream once, so it may stand in a URL. The browser's own reconnect asks for the
same URL again, when the ticket is spent. What it adds is the last event ID; so every id on such a stream carries a
proof that only its reader can know, `<position>~<proof>`. Spent ticket and proof together resume, until the token
expires that the ticket was got with. The ticket alone, which may stand in a log, does nothing; the proof stands in no
URL.
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
from allim.identity import Identity, Ticket, Visitor

MAX_CHARS = 6000  # with the rest of its line it has to fit into the 8 KiB that proxies read

_ALGORITHMS = ["HS256"]


class Tickets:
    """Issues tickets and reads them. The first of the keys signs, all are believed."""

    def __init__(
        self,
        secret_keys: Sequence[str],
        lifetime_s: int,
        now: Callable[[], float] = time.time,
        shared_now: Callable[[], float] | None = None,
    ) -> None:
        """Units: Unix seconds. A token's end is judged by `now`, a ticket's by `shared_now`, the clock that all
        replicas have in common: a ticket lasts less than two machines' clocks may differ.
        """
        # Keys of their own: a ticket is no token, and no token a ticket.
        self._keys = [OctKey.import_key(_derived(key, b"allim ticket")) for key in secret_keys]
        self._proof_keys = [_derived(key, b"allim ticket proof") for key in secret_keys]
        self.lifetime_s = lifetime_s
        self._now = now
        self._shared_now = shared_now or now

    def issue(self, identity: Identity, topics: Sequence[str]) -> str:
        """A ticket for a stream of these topics, which the identity may read at this moment, and of its own.

        Raises: Invalid naming `topics` when they are too much for a URL.
        """
        claims = {
            "jti": secrets.token_urlsafe(16),
            "sub": identity.subject,
            "sid": identity.session,
            "role": identity.role,  # rules may ask for it
            "iat": identity.issued_at,
            "kick": identity.after_kick,
            "exp": self._shared_now() + self.lifetime_s,
            "until": identity.expires_at,
            "topics": list(topics),
            # The others were granted by their rooms, which are asked again each time the ticket is shown.
            "grants": [topic for topic in topics if identity.may_read(topic)],
        }
        ticket = jwt.encode({"alg": "HS256"}, claims, self._keys[0], algorithms=_ALGORITHMS)
        if len(ticket) > MAX_CHARS:
            raise Invalid.field("topics", "are too many, or too long, for the URL of a stream")
        return ticket

    def visitor(self, ticket: str, connection: HTTPConnection) -> Visitor:
        """Who comes with this ticket: for the first time, or with the proof of having read its stream.

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
        )
        topics = tuple(claims["topics"])
        proof = _proof(self._proof_keys[at], claims["jti"])
        _, _, sent = connection.headers.get("last-event-id", "").partition("~")
        if identity.expires_at <= self._now():
            raise Unauthenticated("The session has expired; sign in again.")
        if hmac.compare_digest(sent.encode(), proof.encode()):
            return Visitor(identity, topics=topics, proof=proof)
        left_s = claims["exp"] - self._shared_now()
        if left_s <= 0:
            raise Unauthenticated("The ticket has expired; get a new one.")
        return Visitor(identity, topics=topics, ticket=Ticket(claims["jti"], left_s + 1), proof=proof)

    def _claims(self, ticket: str) -> tuple[int, dict[str, Any]]:
        """The claims, and which key signed them."""
        if len(ticket) <= MAX_CHARS:
            for at, key in enumerate(self._keys):
                try:
                    return at, dict(jwt.decode(ticket, key, algorithms=_ALGORITHMS).claims)
                except (JoseError, ValueError, TypeError, RecursionError):
                    continue
        raise Unauthenticated("The ticket is not valid; get a new one.")


def _derived(secret_key: str, purpose: bytes) -> bytes:
    return hmac.digest(secret_key.encode(), purpose, hashlib.sha256)


def _proof(key: bytes, ticket_id: str) -> str:
    """22 characters that are safe in a header, and that no script elsewhere needs leave to send."""
    return base64.urlsafe_b64encode(hmac.digest(key, ticket_id.encode(), hashlib.sha256)[:16]).decode().rstrip("=")
