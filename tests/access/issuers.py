"""An outside issuer for tests: its keys, its tokens, and what answers under the address of its keys."""

import json
from collections.abc import Callable
from functools import cache
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric import rsa
from joserfc import jwt
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from joserfc.jws import JWSRegistry

URL = "https://issuer.test/keys"

SigningKey = OctKey | RSAKey | ECKey | OKPKey


class _Anything(JWSRegistry):
    # joserfc warns of `EdDSA`, and a warning fails a test.
    algorithms = {  # noqa: RUF012 - as the class above declares it
        **JWSRegistry.algorithms,
        "EdDSA": JWSRegistry.algorithms["Ed25519"],
    }


ANYTHING = _Anything(algorithms=list(_Anything.algorithms), strict_check_header=False)


@cache
def rsa_key(name: str = "", bits: int = 2048) -> RSAKey:
    """The same key for the same name."""
    key = rsa.generate_private_key(65537, bits)
    return RSAKey(key, key)  # not by `generate_key`, which warns of a small one


@cache
def ec_key(name: str = "", curve: str = "P-256") -> ECKey:
    return ECKey.generate_key(curve)


@cache
def ed_key(name: str = "", curve: str = "Ed25519") -> OKPKey:
    return OKPKey.generate_key(curve)  # type: ignore[arg-type] # one of four names


SIGNING_KEYS: dict[str, Callable[[], SigningKey]] = {"RS256": rsa_key, "ES256": ec_key, "EdDSA": ed_key}


def jwk(key: SigningKey, kid: str | None = None, **members: Any) -> dict[str, Any]:
    """The key as its issuer publishes it."""
    return {**key.as_dict(private=False), **({} if kid is None else {"kid": kid}), **members}


def jwk_set(*jwks: object) -> bytes:
    return json.dumps({"keys": jwks}).encode()


def signed(alg: str, key: SigningKey, claims: dict[str, Any], **header: Any) -> str:
    return jwt.encode({"alg": alg, **header}, claims, key, registry=ANYTHING)


class KeyServer:
    """Answers under the address of the keys, as long as somebody asks: with these bytes, or with what is called."""

    def __init__(self, answer: bytes | Callable[[], httpx.Response]) -> None:
        self.answer = answer
        self.requests: list[httpx.Request] = []

    def client(self, *, follow_redirects: bool = False) -> httpx.AsyncClient:
        return httpx.AsyncClient(transport=httpx.MockTransport(self._handle), follow_redirects=follow_redirects)

    def _handle(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        return httpx.Response(200, content=self.answer) if isinstance(self.answer, bytes) else self.answer()


def refused() -> httpx.Response:
    raise httpx.ConnectError("connection refused")


class Clock:
    """Stands still until it is moved."""

    def __init__(self, at: float) -> None:
        self.at = at

    def __call__(self) -> float:
        return self.at
