"""A provider of OpenID Connect for tests: a real server on loopback that signs real tokens, and lies when told to."""

import asyncio
import hmac
import json
import socket
import threading
import time
from base64 import urlsafe_b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any
from urllib.parse import parse_qsl, urlencode

import uvicorn
from joserfc import jwt
from joserfc.jwk import ECKey, Key, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware, RequestResponseEndpoint
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from starlette.routing import Route

from allim.access.signatures import Algorithms
from harness.waiting import until_sync

CLIENT_ID = "allim-of-the-tests"
CLIENT_SECRET = "client secret of the tests, long enough to sign with"
JIWOO = {"sub": "jiwoo-1", "name": "지우", "email": "jiwoo@example.com", "email_verified": True}

_RSA = [RSAKey.generate_key(2048, {"kid": kid, "use": "sig"}) for kid in ("first", "second")]
_OTHERS: dict[str, Key] = {
    "ES256": ECKey.generate_key("P-256", {"kid": "elliptic", "use": "sig"}),
    "EdDSA": OKPKey.generate_key("Ed25519", {"kid": "edwards", "use": "sig"}),
}
_ENDPOINTS = {
    "authorization_endpoint": "/authorize",
    "token_endpoint": "/token",
    "userinfo_endpoint": "/profile",
    "jwks_uri": "/jwks",
}

Signing = Callable[[dict[str, Any]], str]


@dataclass
class ProviderDouble:
    """What it says, and what it was asked.

    Shape: `person` is whom it knows, `profile` what its profile endpoint answers (None: the person); `claims` goes
    over the ID token's claims and `document` over the discovery document, None removing one; `trouble` is by path;
    `refusal` is the error with which it sends people back.
    """

    port: int
    person: dict[str, Any] = field(default_factory=lambda: dict(JIWOO))
    profile: dict[str, Any] | None = None
    claims: dict[str, Any] = field(default_factory=dict)
    document: dict[str, Any] = field(default_factory=dict)
    trouble: dict[str, str] = field(default_factory=dict)
    refusal: str | None = None
    keys: list[Key] = field(default_factory=lambda: [_RSA[0]])
    sign: Signing = field(default=lambda claims: signed(claims))
    asked: list[tuple[str, dict[str, str]]] = field(default_factory=list)
    codes: dict[str, dict[str, str]] = field(default_factory=dict)
    closing: bool = False

    @property
    def issuer(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def times_asked(self, path: str) -> int:
        return sum(asked == path for asked, _ in self.asked)

    def reset(self) -> None:
        """As new, on the same port."""
        self.__dict__.update(ProviderDouble(self.port).__dict__)

    def rotate(self) -> None:
        """Sign with another key from now on, and publish that one alone."""
        self.keys = [_RSA[1]]
        self.sign = lambda claims: signed(claims, key=_RSA[1])

    def sign_with(self, algorithm: str) -> None:
        """Sign with a key of another type from now on."""
        self.keys = [_OTHERS[algorithm]]
        self.sign = lambda claims: signed(claims, algorithm, _OTHERS[algorithm])

    async def discovery(self, _: Request) -> Response:
        endpoints = {name: self.issuer + path for name, path in _ENDPOINTS.items()}
        return JSONResponse(_without_none({"issuer": self.issuer, **endpoints, **self.document}))

    async def jwks(self, _: Request) -> Response:
        return JSONResponse({"keys": [key.as_dict(private=False) for key in self.keys]})

    async def authorize(self, request: Request) -> Response:
        query = dict(request.query_params)
        assert query["client_id"] == CLIENT_ID
        assert query["response_type"] == "code"
        assert query["code_challenge_method"] == "S256"
        code = f"code-{len(self.codes)}"
        self.codes[code] = query
        outcome = {"error": self.refusal, "error_description": "<secret>"} if self.refusal else {"code": code}
        return RedirectResponse(f"{query['redirect_uri']}?{urlencode({**outcome, 'state': query['state']})}")

    async def token(self, request: Request) -> Response:
        form = dict(parse_qsl((await request.body()).decode()))
        if (form.get("client_id"), form.get("client_secret")) != (CLIENT_ID, CLIENT_SECRET):
            return JSONResponse({"error": "invalid_client"}, 401)
        flow = self.codes.pop(form.get("code", ""), None)  # good for one time
        if flow is None or form.get("redirect_uri") != flow["redirect_uri"]:
            return JSONResponse({"error": "invalid_grant"}, 400)
        if challenge_of(form.get("code_verifier", "")) != flow["code_challenge"]:
            return JSONResponse({"error": "invalid_grant"}, 400)
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": CLIENT_ID, "iat": now, "exp": now + 300, "nonce": flow["nonce"]}
        id_token = self.sign(_without_none({**claims, **self.person, **self.claims}))
        return JSONResponse({"access_token": f"access-{self.person['sub']}", "id_token": id_token})

    async def userinfo(self, request: Request) -> Response:
        if request.headers.get("authorization") != f"Bearer access-{self.person['sub']}":
            return JSONResponse({"error": "invalid_token"}, 401)
        return JSONResponse(self.person if self.profile is None else self.profile)

    async def answer(self, request: Request, call_next: RequestResponseEndpoint) -> Response:
        form = dict(parse_qsl((await request.body()).decode()))
        self.asked.append((request.url.path, {**request.query_params, **form}))
        trouble = self.trouble.get(request.url.path)
        while trouble == "hangs" and not self.closing:
            await asyncio.sleep(0.01)
        if trouble is None:
            return await call_next(request)
        return _TROUBLES[trouble]()


_TROUBLES: dict[str, Callable[[], Response]] = {
    "hangs": lambda: Response(status_code=500),
    "fails": lambda: JSONResponse({"error": "server_error"}, 500),
    "is busy": lambda: JSONResponse({"error": "slow_down"}, 429),
    "redirects": lambda: RedirectResponse("/elsewhere"),
    "is a web page": lambda: HTMLResponse("<html>hello</html>"),
    "is a list": lambda: JSONResponse([]),
    "is huge": lambda: JSONResponse({"padding": "x" * 1_000_000}),
    "refuses with 200": lambda: JSONResponse({"error": "invalid_request", "error_description": "<secret>"}),
    "is empty": lambda: JSONResponse({}),
}


def signed(claims: dict[str, Any], algorithm: str = "RS256", key: Key = _RSA[0]) -> str:
    """An ID token as it should be."""
    return jwt.encode({"alg": algorithm, "kid": key.kid}, claims, key, registry=Algorithms(algorithms=[algorithm]))


def signed_by_somebody_else(claims: dict[str, Any]) -> str:
    """With another key under the name of the real one."""
    return jwt.encode({"alg": "RS256", "kid": _RSA[0].kid}, claims, _RSA[1])


def signed_with_the_client_secret(claims: dict[str, Any]) -> str:
    return jwt.encode({"alg": "HS256"}, claims, OctKey.import_key(CLIENT_SECRET))


def signed_with_the_public_key(claims: dict[str, Any]) -> str:
    """HS256, with what everybody knows of the RSA key as its secret."""
    header = _base64({"alg": "HS256", "kid": _RSA[0].kid})
    signature = hmac.digest(_RSA[0].as_pem(private=False), f"{header}.{_base64(claims)}".encode(), sha256)
    return f"{header}.{_base64(claims)}.{_base64(signature)}"


def unsigned(claims: dict[str, Any]) -> str:
    return f"{_base64({'alg': 'none'})}.{_base64(claims)}."


def headed(header: object, claims: dict[str, Any]) -> str:
    """Rightly signed, by RS256 and the real key, whatever the header says."""
    signing_input = f"{_base64(header)}.{_base64(claims)}"
    signature = JWSRegistry.algorithms["RS256"].sign(signing_input.encode(), _RSA[0])
    return f"{signing_input}.{_base64(signature)}"


def tampered(claims: dict[str, Any]) -> str:
    """With another subject put in after signing."""
    header, _, signature = signed(claims).split(".")
    return f"{header}.{_base64({**claims, 'sub': 'somebody-else'})}.{signature}"


def challenge_of(verifier: str) -> str:
    return _base64(sha256(verifier.encode()).digest())


@contextmanager
def provider_double() -> Iterator[ProviderDouble]:
    """A running one, at a free port."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        double = ProviderDouble(listener.getsockname()[1])
        app = Starlette(
            routes=[
                Route("/.well-known/openid-configuration", double.discovery),
                Route("/jwks", double.jwks),
                Route("/authorize", double.authorize),
                Route("/token", double.token, methods=["POST"]),
                Route("/profile", double.userinfo),
            ],
            middleware=[Middleware(BaseHTTPMiddleware, dispatch=double.answer)],
        )
        server = uvicorn.Server(uvicorn.Config(app, log_level="critical", lifespan="off"))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        try:
            until_sync(lambda: server.started, what="the provider double")
            yield double
        finally:
            double.closing = server.should_exit = True
            thread.join()


def _without_none(claims: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in claims.items() if value is not None}


def _base64(value: object) -> str:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return urlsafe_b64encode(data).rstrip(b"=").decode()
