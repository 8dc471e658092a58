"""Why credentials are refused: counted by reason, and logged once a second at most.

The answer does not give the reason, because an attacker would read it too. The operator finds it here. Neither the
log nor the metric holds any part of the credentials.
"""

import time
from collections.abc import Callable
from types import MappingProxyType

import structlog
from starlette.requests import HTTPConnection
from starlette.responses import Response

from allim.errors import AllimError, Unauthenticated
from allim.http.problems import problem

log = structlog.get_logger(__name__)

LOG_EVERY_S = 1.0

REASONS = MappingProxyType(
    {
        "too_long": "the token is longer than 8,192 characters",
        "malformed": "the token is no signed JWT: three parts in base64url, the first a JSON header with `alg`",
        "algorithm": "the token's issuer has no keys for `alg`: allim and issuers with secrets sign by HS256, "
        "issuers with public keys by RS256, ES256 or EdDSA",
        "critical": "the header has `crit`: it demands an extension that is not known here",
        "key": "the token's issuer has no key with its `kid`",
        "signature": "the signature does not fit the issuer's keys: signed with another key, or changed",
        "issuer": "`iss` is neither allim nor an issuer in ALLIM_ISSUERS",
        "audience": "`aud` does not hold the issuer's `audience`, or is there although the issuer's entry names none",
        "expired": "the token has expired (`exp`), or this machine's clock is ahead",
        "not_before": "`nbf` is over 300 s in the future, or this machine's clock is behind",
        "issued_at": "`iat` is over 300 s in the future, or this machine's clock is behind",
        "claims": "the claims are no JSON object",
        "claim_sub": "the subject must be 1 to 255 characters, no control character among them, or a whole number",
        "claim_sid": "`sid` must be 1 to 255 characters, no control character among them, or a whole number",
        "claim_exp": "`exp` must be there, and be a number of Unix seconds",
        "claim_iat": "`iat` must be a number of Unix seconds",
        "claim_nbf": "`nbf` must be a number of Unix seconds",
        "claim_auth_time": "`auth_time` must be a number of Unix seconds",
        "claim_kick": "`kick` must be a number of Unix seconds",
        "claim_topics": "`topics` must be a list of at most 256 topics, exact or `prefix:*`",
        "session_max": "the session has lasted ALLIM_SESSION_MAX_S and is not renewed",
        "signed_out": "the session was signed out",
        "kicked": "an operator kicked the user after the token was issued",
        "ticket_invalid": "the ticket is not one of this server: changed, or signed with another secret key",
        "ticket_expired": "the ticket did not open its stream within ALLIM_TICKET_LIFETIME_S",
        "ticket_used": "the ticket has opened a stream before",
        "no_publish_key": "the request has no `Authorization: Bearer` with a publish key",
        "publish_key": "the publish key is in neither ALLIM_PUBLISH_KEYS nor `/api/keys`, or has expired",
        "password": "the e-mail address or the password is wrong",
    }
)
"""Why credentials are refused, by the reason's name in log and metric."""


class Refused:
    """Counts refused credentials by reason. Of each reason a line is logged once in `LOG_EVERY_S`, with the number of
    refusals since the last line, so that a flood of bad tokens does not flood the log.

    Shape: `count` is called with the reason of each refusal.
    """

    def __init__(self, count: Callable[[str], None], now: Callable[[], float] = time.monotonic) -> None:
        self._count = count
        self._now = now
        self._since: dict[str, int] = {}  # refusals that no line has told yet
        self._log_at: dict[str, float] = {}

    def note(self, error: AllimError) -> None:
        """Count and log an error that is answered, if it refuses credentials."""
        if not isinstance(error, Unauthenticated) or not error.reason:
            return
        reason, now = error.reason, self._now()
        self._count(reason)
        self._since[reason] = self._since.get(reason, 0) + 1
        if now >= self._log_at.get(reason, now):
            log.warning("credentials refused", reason=reason, why=REASONS[reason], refusals=self._since.pop(reason))
            self._log_at[reason] = now + LOG_EVERY_S

    async def answer(self, connection: HTTPConnection, error: Exception) -> Response:
        """Note the error and answer it. For `Starlette(exception_handlers=…)`."""
        assert isinstance(error, Unauthenticated)
        self.note(error)
        return problem(connection, error)
