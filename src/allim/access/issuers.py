"""The trusted issuers beside allim itself: the keys of each, its audience, and the names of its claims.

A token is judged by the entry of its `iss` alone, and an entry has one kind of keys: secrets (HS256), public keys in
PEM, or the address of a JWK set. So a public key can never serve as a secret.
Source: RFC 7519 (JWT), RFC 8725, 3.1 and 3.8 to 3.10, RFC 7468 (PEM).
"""

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, TypeVar
from urllib.parse import urlsplit

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from joserfc.jwk import ECKey, OctKey, OKPKey, RSAKey
from joserfc.jws import CompactSignature
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator
from pydantic.alias_generators import to_camel

from allim.access.claims import OUR_NAMES, ClaimNames, identity_of, is_meant_for
from allim.access.jwks import RSA_BITS, Jwks
from allim.access.signatures import MIN_SECRET_CHARS, PUBLIC, SHARED, Key, bad_token, is_signed
from allim.identity import ALLIM, CLOCK_LEEWAY_S, Identity

T = TypeVar("T")

_PEM = re.compile(r"-----BEGIN ([A-Z0-9 ]+)-----.*?-----END \1-----", re.DOTALL)


class SecretKeys:
    """Secrets that the issuer shares. They have no names, so a token's `kid` says nothing of them."""

    algorithms = (SHARED,)

    def __init__(self, secrets: Sequence[str]) -> None:
        self._keys = [OctKey.import_key(secret.encode()) for secret in secrets]
        self.kept = " ".join(hashlib.sha256(b"allim issuer\0" + secret.encode()).hexdigest() for secret in secrets)

    async def of(self, kid: object, alg: str) -> Sequence[Key]:
        return self._keys

    async def close(self) -> None: ...


class PemKeys:
    """Public keys in PEM, one or several. They have no names either."""

    def __init__(self, text: str) -> None:
        """Raises: ValueError."""
        blocks = [(found[1], found[0]) for found in _PEM.finditer(text)]
        if not blocks or any(label != "PUBLIC KEY" for label, _ in blocks):
            raise ValueError("must hold public keys in PEM, each from `-----BEGIN PUBLIC KEY-----` to its end")
        self._keys = [_public_key(block) for _, block in blocks]
        self.algorithms = tuple(dict.fromkeys(alg for alg, _ in self._keys))
        self.kept = hashlib.sha256("".join(block for _, block in blocks).encode()).hexdigest()

    async def of(self, kid: object, alg: str) -> Sequence[Key]:
        return [key for key_alg, key in self._keys if key_alg == alg]

    async def close(self) -> None: ...


class JwksKeys:
    """The keys that the issuer publishes, by their names."""

    algorithms = PUBLIC

    def __init__(self, jwks: Jwks) -> None:
        self.jwks = jwks
        self.kept = jwks.url

    async def of(self, kid: object, alg: str) -> Sequence[Key]:
        """Raises: Unavailable when the key is unknown and the issuer's keys cannot be read."""
        key = await self.jwks.key(kid if isinstance(kid, str) else None, alg)
        return [] if key is None else [key]

    async def close(self) -> None:
        await self.jwks.close()


Keys = SecretKeys | PemKeys | JwksKeys
"""The keys of one issuer.

Shape: `algorithms` are those for which it has keys; `of` returns the keys that may have signed; `kept` describes the
keys, for comparing replicas.
"""


@dataclass(frozen=True, slots=True)
class Issuer:
    """A trusted issuer: its tokens name users, the topics they may read, and operators.

    Shape: `name` is its tokens' `iss`, to the letter, None for tokens without `iss`; `audience` is what their `aud`
    must be or hold, "" when they must have none.
    Units: `leeway_s` is how much longer than `exp` a token is good.
    """

    name: str | None
    keys: Keys
    audience: str = ""
    names: ClaimNames = OUR_NAMES
    leeway_s: float = 0

    async def identity(self, token: str, envelope: CompactSignature, claims: Mapping[str, object]) -> Identity:
        """Return the identity for which this issuer signed; its times are not judged.

        Raises: Unauthenticated; Unavailable when the issuer's keys cannot be read.
        """
        alg = envelope.protected["alg"]
        if alg not in self.keys.algorithms:
            raise bad_token("algorithm")
        keys = await self.keys.of(envelope.protected.get("kid"), alg)
        if not keys:
            raise bad_token("key")
        if not any(is_signed(envelope, key) for key in keys):
            raise bad_token("signature")
        if not self._is_audience(claims):
            raise bad_token("audience")
        # A `kick` of another issuer has another meaning.
        identity = identity_of(token, {**claims, "kick": None}, self.names)
        return identity._replace(expires_at=identity.expires_at + self.leeway_s, issuer=self.name or "")

    def _is_audience(self, claims: Mapping[str, object]) -> bool:
        return is_meant_for(self.audience, claims) if self.audience else "aud" not in claims

    def described(self) -> str:
        """Return the whole entry as text, without its secrets, for comparing replicas."""
        return repr((self.name, self.keys.kept, self.audience, tuple(self.names), self.leeway_s))


def by_name(issuers: Sequence[Issuer], our_secrets: Sequence[str] = ()) -> dict[str | None, Issuer]:
    """Return the issuers by their tokens' `iss`.

    Raises: ValueError when two have one name, or one has allim's name or its key.
    """
    found = {issuer.name: issuer for issuer in issuers}
    if len(found) < len(issuers):
        raise ValueError("each `issuer` must be another")
    if ALLIM in found:
        raise ValueError(f"`issuer` must not be {ALLIM}, which signs with its own key")
    ours = set(SecretKeys(our_secrets).kept.split())
    if any(ours & set(issuer.keys.kept.split()) for issuer in issuers):
        raise ValueError(
            "a secret is allim's own ALLIM_SECRET_KEY: every token that allim signs would be good at its issuer; "
            "give allim a key of its own"
        )
    return found


# -- The list as it is written -------------------------------------------------------------------------------------


def _secret(value: str) -> str:
    if len(value) < MIN_SECRET_CHARS:
        raise ValueError(f"must have at least {MIN_SECRET_CHARS} characters")
    return value


def _jwks_url(value: str) -> str:
    parts = urlsplit(value)
    if parts.scheme not in {"http", "https"} or not parts.hostname or parts.username or parts.fragment:
        raise ValueError("must be an http:// or https:// address without user and fragment")
    return value


Text = Annotated[str, Field(min_length=1, max_length=2048)]
Secret = Annotated[str, AfterValidator(_secret)]


class _Written(BaseModel):
    model_config = ConfigDict(
        extra="forbid", frozen=True, alias_generator=to_camel, validate_by_alias=True, strict=True
    )


class _Claims(_Written):
    subject: Text = "sub"
    topics: Text = "topics"
    role: Text | None = None


class Entry(_Written):
    """One issuer, as ALLIM_ISSUERS describes it."""

    issuer: Text | None
    secret: Secret | None = None
    secrets: Annotated[tuple[Secret, ...], Field(min_length=1, max_length=16)] | None = None
    secret_file: Text | None = None
    jwks_url: Annotated[str, AfterValidator(_jwks_url)] | None = None
    public_key: Text | None = None
    public_key_file: Text | None = None
    audience: Text | None = None
    claims: _Claims = Field(default_factory=_Claims)
    operator_role: Text = "operator"
    leeway_s: Annotated[float, Field(ge=0, le=CLOCK_LEEWAY_S)] = 0

    @model_validator(mode="after")
    def _one_kind_of_keys(self) -> Self:
        given = [name for name in _KEYS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(f"must have one of {', '.join(map(to_camel, _KEYS))}")
        return self


_KEYS = ("secret", "secrets", "secret_file", "jwks_url", "public_key", "public_key_file")


def read_issuers(setting: str, on_failure: Callable[[], None] = lambda: None) -> list[Issuer]:
    """Return the issuers that ALLIM_ISSUERS lists.

    Shape: `setting` is a JSON list, or the path of a file that holds one. Files that entries name are found from the
    folder of that file. `on_failure` is called when an issuer's JWK set cannot be read.
    Raises: ValueError that names the entry, and never repeats a secret.
    """
    if not setting.strip():
        return []
    text, folder = (setting, Path()) if setting.lstrip()[0] in "[{" else (_file(Path(setting)), Path(setting).parent)
    try:
        entries = _ENTRIES.validate_json(text)
    except ValidationError as error:
        faults = error.errors(include_url=False, include_input=False)[:5]
        raise ValueError("; ".join(map(_line, faults))) from None
    return [_issuer(number, entry, folder, on_failure) for number, entry in enumerate(entries)]


_ENTRIES = TypeAdapter(list[Entry])


def _issuer(number: int, entry: Entry, folder: Path, on_failure: Callable[[], None]) -> Issuer:
    try:
        keys = _keys_of(entry, folder, on_failure)
    except ValueError as error:
        raise ValueError(f"[{number}].{error}") from error
    claims = entry.claims
    names = ClaimNames(claims.subject, claims.topics, claims.role or "", entry.operator_role)
    return Issuer(entry.issuer, keys, entry.audience or "", names, entry.leeway_s)


def _keys_of(entry: Entry, folder: Path, on_failure: Callable[[], None]) -> Keys:
    """Raises: ValueError that begins with the member's name."""
    if entry.jwks_url is not None:
        return JwksKeys(Jwks(entry.jwks_url, on_failure=on_failure))
    if entry.public_key is not None:
        return _naming("publicKey", PemKeys, entry.public_key)
    if entry.public_key_file is not None:
        return _naming("publicKeyFile", lambda name: PemKeys(_file(folder / name)), entry.public_key_file)
    if entry.secret_file is not None:
        secret = _naming("secretFile", lambda name: _secret(_file(folder / name).strip()), entry.secret_file)
        return SecretKeys([secret])
    return SecretKeys(entry.secrets or [entry.secret or ""])


def _naming(member: str, make: Callable[[str], T], value: str) -> T:
    try:
        return make(value)
    except ValueError as error:
        raise ValueError(f"{member}: {error}") from error


def _file(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise ValueError(f"{error.strerror}: {path}") from error


def _public_key(block: str) -> tuple[str, Key]:
    """Return the algorithm that a key is for, and the key.

    Raises: ValueError.
    """
    try:
        loaded = load_pem_public_key(block.encode())
    except (ValueError, UnsupportedAlgorithm):
        raise ValueError("holds a key that cannot be read") from None
    match loaded:
        case RSAPublicKey() if loaded.key_size in RSA_BITS:
            return "RS256", RSAKey.import_key(block)
        case EllipticCurvePublicKey() if isinstance(loaded.curve, SECP256R1):
            return "ES256", ECKey.import_key(block)
        case Ed25519PublicKey():
            return "EdDSA", OKPKey.import_key(block)
    raise ValueError("must be an RSA key of 2,048 to 8,192 bits, a P-256 key or an Ed25519 key")


def _line(found: Any) -> str:
    """Return which member of which entry is wrong, without its value."""
    if not found["loc"]:
        return f"must be a JSON list of issuers, or the path of a file that holds one: {found['msg']}"
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in found["loc"])
    return f"{path}: {str(found['msg']).removeprefix('Value error, ')}"
