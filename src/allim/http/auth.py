"""Who is asking: session tokens for users, keys for publishers.

Source: RFC 7519 (JWT), RFC 6750 (Bearer), RFC 6265bis (cookies).
"""

import hashlib
import hmac
import math
import re
import secrets
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey
from starlette.requests import HTTPConnection
from starlette.responses import Response

from allim.errors import Forbidden, Unauthenticated
from allim.identity import Identity

COOKIE = "allim_session"

_ALGORITHMS = ["HS256"]  # the token's own `alg` decides nothing
_MIN_SECRET_BYTES = 32  # RFC 7518, 3.2
_MAX_TOKEN_CHARS = 8192
_MAX_TOPICS = 256
_SUBJECT = re.compile(r"[A-Za-z0-9._~-]{1,128}")
_GRANT = re.compile(r"[a-z][a-z0-9_-]*(:(\*|[A-Za-z0-9._~-]{1,128}))?")
_PUBLISHER = re.compile(r"[A-Za-z0-9._~-]{1,64}")
_SAFE_METHODS = {"GET", "HEAD", "OPTIONS"}


class Tokens:
    """Session tokens: JWT signed with HS256, also issued by other services that hold the secret."""

    def __init__(self, secret_key: str, lifetime_s: int, now: Callable[[], float] = time.time) -> None:
        if len(secret_key.encode()) < _MIN_SECRET_BYTES:
            raise ValueError(f"the secret key must have at least {_MIN_SECRET_BYTES} bytes")
        self._key = OctKey.import_key(secret_key.encode())
        self.lifetime_s = lifetime_s
        self._now = now

    def issue(self, subject: str) -> str:
        """A token for a new session of `subject`."""
        issued_at = int(self._now())
        claims = {
            "sub": subject,
            "sid": secrets.token_urlsafe(16),
            "iat": issued_at,
            "exp": issued_at + self.lifetime_s,
        }
        return jwt.encode({"alg": "HS256"}, claims, self._key, algorithms=_ALGORITHMS)

    def verify(self, token: str) -> Identity:
        """Who the token speaks for. A token without `sid` belongs to the session "".

        Raises: Unauthenticated, in the same words whatever is wrong, except that an expired token is named.
        """
        claims = self._claims(token)
        expires_at = claims.get("exp")
        if isinstance(expires_at, bool) or not isinstance(expires_at, int | float):
            raise _bad_token()
        if not math.isfinite(expires_at) or expires_at <= self._now():
            raise Unauthenticated("The token has expired; sign in again.")
        not_before = claims.get("nbf", 0)
        if not isinstance(not_before, int | float) or not_before > self._now():
            raise _bad_token()
        return Identity(
            subject=_checked(_SUBJECT, claims.get("sub")),
            session=_checked(_SUBJECT, claims["sid"]) if "sid" in claims else "",
            expires_at=float(expires_at),
            topics=_topics(claims.get("topics", [])),
        )

    def identify(self, connection: HTTPConnection) -> Identity:
        """Who asks: `Authorization: Bearer` wins, then the session cookie.

        Raises: Unauthenticated; Forbidden when another site's page tries to change something by the cookie.
        """
        token = _bearer(connection)
        if token is None:
            token = connection.cookies.get(COOKIE)
            _refuse_other_sites(connection)
        if not token:
            raise Unauthenticated("Sign in first.")
        return self.verify(token)

    def set_cookie(self, connection: HTTPConnection, response: Response, token: str) -> None:
        """Keep the token in the browser, out of reach of scripts and of other sites' requests."""
        _cookie(connection, response, token, self.lifetime_s)

    def clear_cookie(self, connection: HTTPConnection, response: Response) -> None:
        """Have the browser forget the token."""
        _cookie(connection, response, "", 0)

    def _claims(self, token: str) -> dict[str, object]:
        if len(token) > _MAX_TOKEN_CHARS:
            raise _bad_token()
        try:
            return dict(jwt.decode(token, self._key, algorithms=_ALGORITHMS).claims)
        except (JoseError, ValueError, TypeError, RecursionError):
            raise _bad_token() from None


class PublishKeys:
    """The keys of services that publish.

    Shape: each entry is `name:secret` or a bare `secret`, whose name is then a prefix of its hash. Several
    keys may share a name, so that a key can be replaced without a pause.
    """

    def __init__(self, entries: Sequence[str]) -> None:
        self._keys = [_publish_key(entry) for entry in entries]
        if len({key.digest for key in self._keys}) < len(self._keys):
            raise ValueError("two publish keys have the same secret")

    def publisher_of(self, connection: HTTPConnection) -> str:
        """The name that belongs to the request's key.

        Raises: Unauthenticated.
        """
        secret = _bearer(connection)
        if not secret:
            raise Unauthenticated("Send a publish key as `Authorization: Bearer <key>`.")
        digest = _digest(secret)
        # Every key is compared, in constant time: how long it takes tells nothing about any of them.
        names = [key.name for key in self._keys if hmac.compare_digest(key.digest, digest)]
        if not names:
            raise Unauthenticated("The publish key is not known.")
        return names[0]


class _PublishKey(NamedTuple):
    name: str
    digest: bytes


def _publish_key(entry: str) -> _PublishKey:
    name, separator, secret = entry.strip().partition(":")
    if not separator:
        secret, name = name, _digest(name).hex()[:8]
    if not secret or not _PUBLISHER.fullmatch(name):
        raise ValueError("a publish key must be `name:secret` or `secret`")
    return _PublishKey(name, _digest(secret))


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode(errors="surrogatepass")).digest()


def _bearer(connection: HTTPConnection) -> str | None:
    scheme, _, credentials = connection.headers.get("authorization", "").partition(" ")
    return credentials.strip() if scheme.lower() == "bearer" else None


def _refuse_other_sites(connection: HTTPConnection) -> None:
    # SameSite=Lax already keeps the cookie back; this is for browsers and settings where it does not.
    method = connection.scope.get("method", "GET")
    if method not in _SAFE_METHODS and connection.headers.get("sec-fetch-site") == "cross-site":
        raise Forbidden("Another site's page may not change anything here.")


def _cookie(connection: HTTPConnection, response: Response, value: str, max_age_s: int) -> None:
    secure = connection.url.scheme == "https"
    response.set_cookie(COOKIE, value, max_age=max_age_s, path="/", httponly=True, samesite="lax", secure=secure)


def _topics(claim: object) -> tuple[str, ...]:
    if not isinstance(claim, list) or len(claim) > _MAX_TOPICS:
        raise _bad_token()
    return tuple(_checked(_GRANT, topic) for topic in claim)


def _checked(form: re.Pattern[str], value: object) -> str:
    if not isinstance(value, str) or not form.fullmatch(value):
        raise _bad_token()
    return value


def _bad_token() -> Unauthenticated:
    return Unauthenticated("The token is not valid; sign in again.")
