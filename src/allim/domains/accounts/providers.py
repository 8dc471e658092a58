"""Sign-in over OpenID Connect: the requests to Google, Kakao and Naver, and the checks of their answers.

A client of the providers alone: no request of a browser, no cookie and no account is known here. An answer counts
when its ID token does: signature, issuer, audience, times and nonce. No text of a provider is passed on.

All three publish a discovery document, sign with RS256, and know PKCE with S256 and `client_secret_post`. Where they
differ (`DIALECTS`):

- Google: the ID token has `name`, `email` and `email_verified`.
  https://developers.google.com/identity/openid-connect/reference
- Kakao: gives an ID token only when OpenID Connect is switched on for the application. `scope` asks for single items
  of consent, and one that the application has not set up is refused (KOE205); without it those set up are asked for.
  `nickname` and `email` depend on consent. The ID token has no `email_verified`; the profile endpoint may.
  https://developers.kakao.com/docs/latest/ko/kakaologin/rest-api
- Naver: beside its older OAuth 2.0 there is OpenID Connect (/oauth2/ instead of /oauth2.0/). Its guide knows no
  `nonce`, so one that does not come back is no fault: the code is bound to this flow by PKCE as well. It wants the
  `state` together with the code. The name is in the profile, one level down. Nothing says that the `email` there was
  verified, so it is not taken.
  https://developers.naver.com/docs/login/devguide/devguide.md, 3.5

Authlib builds the requests and knows the rules of an ID token. Its HTTP integration is not used: it takes httpx or
httpx2, whichever is installed, and reads answers of any size.

Source: OpenID Connect Core 1.0 and Discovery 1.0, RFC 7636 (PKCE), RFC 9700 (security of OAuth 2.0).
"""

import asyncio
import hmac
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from http.cookiejar import CookieJar, DefaultCookiePolicy
from ipaddress import ip_address
from typing import Any, NamedTuple
from urllib.parse import SplitResult, urlsplit

import httpx
from authlib.oauth2.auth import ClientAuth
from authlib.oauth2.rfc6749.parameters import prepare_grant_uri, prepare_token_request
from authlib.oauth2.rfc7636 import create_s256_code_challenge
from authlib.oidc.core import CodeIDToken
from joserfc import jws, jwt
from joserfc.errors import JoseError

from allim.access.jwks import Jwks
from allim.access.signatures import PUBLIC, Algorithms
from allim.domains.accounts.flows import Cancelled, Flow, Person
from allim.domains.accounts.models import clean_name, normal_email
from allim.errors import AllimError, Invalid, Unauthenticated, Unavailable
from allim.http.bodies import parse_json
from allim.identity import CLOCK_LEEWAY_S

TIMEOUT_S = 5.0

_SIGNATURES = Algorithms(algorithms=PUBLIC, strict_check_header=False)
_METADATA_AGE_S = 3600.0
_MAX_ANSWER_BYTES = 256 * 1024
_MAX_SUBJECT_CHARS = 255  # OpenID Connect Core, 2
_ERROR = re.compile(r"[a-z_]{1,64}")


class _Dialect(NamedTuple):
    """The particulars of one provider. `title` names a person without a name at the provider."""

    title: str
    scope: str | None
    echoes_nonce: bool = True
    wants_state_with_code: bool = False
    profile_under: str | None = None


DIALECTS = {
    "google": _Dialect("Google", "openid email profile"),
    "kakao": _Dialect("Kakao", None),
    "naver": _Dialect(
        "Naver", "openid profile", echoes_nonce=False, wants_state_with_code=True, profile_under="response"
    ),
}


class _Metadata(NamedTuple):
    authorization_endpoint: str
    token_endpoint: str
    userinfo_endpoint: str | None
    jwks: Jwks
    fetched_at: float


class Provider:
    """One provider, as one of its clients.

    Raises: ValueError when the issuer may not be trusted: neither https nor http on loopback.
    """

    def __init__(
        self,
        name: str,
        issuer: str,
        client_id: str,
        client_secret: str,
        http: httpx.AsyncClient,
        *,
        timeout_s: float = TIMEOUT_S,
        now: Callable[[], float] = time.time,
    ) -> None:
        if not _is_safe(issuer, on_loopback=True):
            raise ValueError("must be https, or http on loopback")
        self.name = name
        self.issuer = issuer
        self._dialect = DIALECTS[name]
        self._client_id = client_id
        self._authentication = ClientAuth(client_id, client_secret, "client_secret_post")
        self._http = http
        self._timeout_s = timeout_s
        self._now = now
        self._discovery: asyncio.Task[_Metadata] | None = None
        self._jwks: dict[str, Jwks] = {}

    async def authorization_url(self, flow: Flow) -> str:
        """Where the browser goes to sign in.

        Raises: Unavailable.
        """
        url: str = prepare_grant_uri(
            (await self._metadata()).authorization_endpoint,
            self._client_id,
            "code",
            flow.redirect_uri,
            self._dialect.scope,
            flow.state,
            nonce=flow.nonce,
            code_challenge=create_s256_code_challenge(flow.verifier),
            code_challenge_method="S256",
        )
        return url

    async def person(self, flow: Flow, answer: Mapping[str, str]) -> Person:
        """Return the person that came back with `answer`, the query of the redirect.

        Raises: Cancelled; Unauthenticated when anything does not fit; Unavailable.
        """
        if not hmac.compare_digest(answer.get("state", "").encode(), flow.state.encode()):
            raise Unauthenticated("The state is not that of this flow.")
        if "error" in answer:
            raise self._turned_back(answer["error"])
        metadata = await self._metadata()
        tokens = await self._redeem(metadata, flow, answer.get("code", ""))
        claims = await self._claims(metadata, flow, tokens)
        profile = await self._profile(metadata, claims, tokens)
        return Person(
            self.issuer,
            _subject(claims),
            _name(claims) or _name(profile) or self._dialect.title,
            _verified_email(claims) or _verified_email(profile),
        )

    async def close(self) -> None:
        """End the calls that are under way."""
        if self._discovery is not None:
            self._discovery.cancel()
            await asyncio.wait({self._discovery})
        for jwks in self._jwks.values():
            await jwks.close()

    def _turned_back(self, error: str) -> AllimError:
        if error == "access_denied":
            return Cancelled("The person did not sign in.")
        if error in {"server_error", "temporarily_unavailable"}:
            return self._away(error)
        return Unauthenticated(f"The provider refused the request ({_word(error)}).")

    async def _metadata(self) -> _Metadata:
        # The task is the cache: calls that come while it runs wait for the same answer.
        if self._discovery is None or self._is_over(self._discovery):
            self._discovery = asyncio.create_task(self._discover())
        return await asyncio.shield(self._discovery)

    def _is_over(self, discovery: asyncio.Task[_Metadata]) -> bool:
        if not discovery.done():
            return False
        if discovery.cancelled() or discovery.exception() is not None:
            return True
        return not 0 <= self._now() - discovery.result().fetched_at < _METADATA_AGE_S

    async def _discover(self) -> _Metadata:
        status, document = await self._call("GET", f"{self.issuer.rstrip('/')}/.well-known/openid-configuration")
        if status != 200 or document.get("issuer") != self.issuer:
            raise self._away("no discovery document of this issuer")
        jwks_uri = self._endpoint(document, "jwks_uri")
        if jwks_uri not in self._jwks:
            self._jwks[jwks_uri] = Jwks(jwks_uri, self._http, timeout_s=self._timeout_s)
        return _Metadata(
            self._endpoint(document, "authorization_endpoint"),
            self._endpoint(document, "token_endpoint"),
            self._endpoint(document, "userinfo_endpoint") if "userinfo_endpoint" in document else None,
            self._jwks[jwks_uri],
            self._now(),
        )

    def _endpoint(self, document: Mapping[str, Any], name: str) -> str:
        url = document.get(name)
        if not isinstance(url, str) or not _is_safe(url, on_loopback=self.issuer.startswith("http:")):
            raise self._away(f"no safe {name}")
        return url

    async def _redeem(self, metadata: _Metadata, flow: Flow, code: str) -> dict[str, Any]:
        if not code:
            raise Unauthenticated("There is no code.")
        more = {"state": flow.state} if self._dialect.wants_state_with_code else {}
        body = prepare_token_request(
            "authorization_code", redirect_uri=flow.redirect_uri, code=code, code_verifier=flow.verifier, **more
        )
        headers = {"content-type": "application/x-www-form-urlencoded"}
        url, headers, body = self._authentication.prepare("POST", metadata.token_endpoint, headers, body)
        status, tokens = await self._call("POST", url, headers=headers, content=body)
        if status != 200 or "error" in tokens:  # Naver answers an error with 200
            raise Unauthenticated(f"The provider refused the code ({_word(tokens.get('error'))}).")
        return tokens

    async def _claims(self, metadata: _Metadata, flow: Flow, tokens: Mapping[str, Any]) -> dict[str, Any]:
        id_token = _text(tokens, "id_token")
        with _judging_the_id_token():
            header = jws.extract_compact(id_token.encode(), registry=_SIGNATURES).protected
            _SIGNATURES.check_header(header)
        if header["alg"] not in PUBLIC:
            raise Unauthenticated("The ID token is signed in a way that is not accepted.")
        key = await metadata.jwks.key(header.get("kid"), header["alg"])
        if key is None:
            raise Unauthenticated("The ID token is signed with an unknown key.")
        with _judging_the_id_token():
            claims = dict(jwt.decode(id_token, key, registry=_SIGNATURES).claims)
            self._check(claims, header, flow, tokens)
        return claims

    def _check(self, claims: dict[str, Any], header: dict[str, Any], flow: Flow, tokens: Mapping[str, Any]) -> None:
        expects_nonce = self._dialect.echoes_nonce or "nonce" in claims
        rules = CodeIDToken(
            claims,
            header,
            options={
                "iss": {"essential": True, "value": self.issuer},
                "aud": {"essential": True, "value": self._client_id},
            },
            params={
                "client_id": self._client_id,
                "nonce": flow.nonce if expects_nonce else None,
                "access_token": tokens.get("access_token"),
            },
        )
        rules.validate(int(self._now()), int(CLOCK_LEEWAY_S))

    async def _profile(
        self, metadata: _Metadata, claims: Mapping[str, Any], tokens: Mapping[str, Any]
    ) -> Mapping[str, Any]:
        """Return the claims of the provider's profile endpoint, if the ID token has too few."""
        if metadata.userinfo_endpoint is None or (_name(claims) and _verified_email(claims)):
            return {}
        headers = {"authorization": f"Bearer {_text(tokens, 'access_token')}"}
        status, profile = await self._call("GET", metadata.userinfo_endpoint, headers=headers)
        if status != 200:
            raise Unauthenticated("The provider refused to show the profile.")
        if self._dialect.profile_under is not None:  # without a `sub` to compare
            nested = profile.get(self._dialect.profile_under)
            return nested if isinstance(nested, dict) else {}
        if profile.get("sub") != claims["sub"]:
            raise Unauthenticated("The profile is of another person.")
        return profile

    async def _call(
        self, method: str, url: str, headers: Mapping[str, str] | None = None, content: str | None = None
    ) -> tuple[int, dict[str, Any]]:
        """The status and the JSON object that the provider answers; a redirect is not followed.

        Raises: Unavailable when no such answer comes in time.
        """
        try:
            async with (
                asyncio.timeout(self._timeout_s),
                self._http.stream(method, url, headers=headers, content=content, follow_redirects=False) as response,
            ):
                body = await _bounded(response)
        except (httpx.HTTPError, httpx.InvalidURL, TimeoutError) as error:
            raise self._away(type(error).__name__) from None
        if response.status_code == 429 or response.status_code >= 500:
            raise self._away(f"status {response.status_code}")
        try:
            answer = parse_json(body)
        except Invalid:
            answer = None
        if not isinstance(answer, dict):
            raise self._away(f"status {response.status_code} without a JSON object")
        return response.status_code, answer

    def _away(self, reason: str) -> Unavailable:
        return Unavailable(f"{self._dialect.title} does not answer as it should ({reason}).")


def back_channel() -> httpx.AsyncClient:
    """The client for `Provider`: it keeps no cookies, for one person's must not go with another's request, and
    takes no compressed answers, for their size is bounded."""
    no_cookies = CookieJar(DefaultCookiePolicy(allowed_domains=()))
    headers = {"accept": "application/json", "accept-encoding": "identity"}
    return httpx.AsyncClient(timeout=TIMEOUT_S, cookies=no_cookies, headers=headers)


async def _bounded(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        body += chunk
        if len(body) > _MAX_ANSWER_BYTES:
            raise httpx.RemoteProtocolError("the answer is too large")
    return bytes(body)


def _is_safe(url: str, on_loopback: bool) -> bool:
    """Whether it is https, or http on loopback where that is allowed."""
    try:
        parts = urlsplit(url)
        return bool(parts.hostname) and (
            parts.scheme == "https" or (on_loopback and parts.scheme == "http" and _is_loopback(parts))
        )
    except ValueError:
        return False


def _is_loopback(parts: SplitResult) -> bool:
    return parts.hostname == "localhost" or ip_address(parts.hostname or "").is_loopback


@contextmanager
def _judging_the_id_token() -> Iterator[None]:
    try:
        yield
    except (JoseError, ValueError, TypeError, RecursionError) as error:
        reason = f"{type(error).__name__} {getattr(error, 'claim', '')}".strip()
        raise Unauthenticated(f"The ID token is not valid ({reason}).") from None


def _text(tokens: Mapping[str, Any], name: str) -> str:
    text = tokens.get(name)
    if not isinstance(text, str) or not text.isascii() or not text.isprintable():
        raise Unauthenticated(f"The provider gave no {name}.")
    return text


def _subject(claims: Mapping[str, Any]) -> str:
    subject: str = claims["sub"]
    if not 1 <= len(subject) <= _MAX_SUBJECT_CHARS or not subject.isascii() or not subject.isprintable():
        raise Unauthenticated("The ID token names no person.")
    return subject


def _name(said: Mapping[str, Any]) -> str | None:
    names = (clean_name(said.get(key)) for key in ("name", "nickname"))
    return next((name for name in names if name), None)


def _verified_email(said: Mapping[str, Any]) -> str | None:
    email = said.get("email")
    if said.get("email_verified") is not True or not isinstance(email, str):
        return None
    try:
        return normal_email(email)
    except ValueError:
        return None


def _word(error: object) -> str:
    """An error of OAuth 2.0, for the log; anything else is not repeated."""
    return error if isinstance(error, str) and _ERROR.fullmatch(error) else "no known error"
