"""Settings: environment variables into typed, frozen values. Read only by `app`, `serve`, `up` and `cli`.

Every setting, its unit and default stands in docs/operations.md.
"""

import os
import re
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PrivateAttr, ValidationError
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from allim import data_folder
from allim.domains.settings import Variable, variables
from allim.errors import Unusable
from allim.origin_names import origin, origins
from allim.variables import PREFIX, Words, http_url, line

MIN_SECRET_CHARS = 32
MIN_PUBLISH_KEY_CHARS = 20
IPV4_MAPPED_BITS = 96  # of `::ffff:0:0/96`, before the IPv4 address
DEFAULT_DOMAINS = ("accounts", "keys", "snapshots", "page")
DOMAINS = f"{PREFIX}DOMAINS"
COMMAND_LINE = frozenset({PREFIX + "PUBLISH_KEY", PREFIX + "TOKEN"})  # read by `allim publish` and `allim tail`


# Settings that must be equal on all replicas over one Redis, beside the secret keys. Replicas compare them.
EQUAL = (
    *("redis_durable", "durability", "heartbeat_s", "pulse_s", "history_events", "history_ttl_s", "max_event_bytes"),
    *("session_lifetime_s", "session_max_s", "ticket_lifetime_s", "jwt_audience", "streams_per_user"),
    "cookie_name",
    *("user_calls_per_min", "address_calls_per_min", "sign_in_tries_per_min", "publish_events_per_s"),
    "publisher_memory_mb",
)


class SettingsError(Exception):
    """One line for the operator, naming each wrong variable.

    Shape: `advice` is a remedy, "" if the line says it.
    """

    def __init__(self, detail: str, advice: str = "") -> None:
        super().__init__(detail)
        self.advice = advice


def _server_id(value: str) -> str:
    if not value or len(value) > 64 or not all(c.isascii() and (c.isalnum() or c in "._-") for c in value):
        raise ValueError("must be 1 to 64 of A-Z a-z 0-9 . _ -")
    return value


def _default_server_id() -> str:
    host = "".join(c if c.isascii() and (c.isalnum() or c in "._-") else "-" for c in socket.gethostname())
    return f"{host[:48]}-{secrets.token_hex(3)}"


def _prefix(value: str) -> str:
    if any(c in value for c in "{}*?[] ") or not value.isascii() or not value.isprintable():
        raise ValueError("must be printable ASCII without spaces and { } * ? [ ]")
    return value


_REDIS_SCHEMES = ("redis://", "rediss://", "unix://", "redis+sentinel://", "rediss+sentinel://")


def _redis_scheme(value: str | None) -> str | None:
    if value is not None and not value.startswith(_REDIS_SCHEMES):
        raise ValueError(f"must start with {', '.join(_REDIS_SCHEMES)}")
    return value


def _networks(values: tuple[str, ...]) -> tuple[str, ...]:
    """The networks in the form that uvicorn compares with; it would ignore `10.1.2.3/8` and `::ffff:10.0.0.1`."""
    try:
        return tuple(map(_network, values))
    except ValueError:
        raise ValueError("must be addresses or networks, separated by commas") from None


def _network(value: str) -> str:
    network: IPv4Network | IPv6Network = ip_network(value, strict=False)
    mapped = network.network_address.ipv4_mapped if isinstance(network, IPv6Network) else None
    if mapped is not None and network.prefixlen >= IPV4_MAPPED_BITS:
        network = IPv4Network((mapped, network.prefixlen - IPV4_MAPPED_BITS))
    return str(network.network_address if network.num_addresses == 1 else network)


_TRACING = ("traceparent", "tracestate", "sentry-trace", "baggage")  # Trace Context, Baggage, Sentry's own
_FIELD_NAME = re.compile(r"[A-Za-z0-9!#$%&'+.^_`|~-]{1,64}", re.ASCII)  # RFC 9110, 5.1, without *


def _field_names(values: tuple[str, ...]) -> tuple[str, ...]:
    if not all(map(_FIELD_NAME.fullmatch, values)):
        raise ValueError("must be names of request headers, separated by commas; no *: with credentials it is a name")
    return values


def _cookie_name(value: str) -> str:
    if not _FIELD_NAME.fullmatch(value):
        raise ValueError("must be the name of a cookie: 1 to 64 of A-Z a-z 0-9 ! # $ % & ' + . ^ _ ` | ~ -")
    return value


def _publish_keys(entries: tuple[str, ...]) -> tuple[str, ...]:
    """Refuse secrets that can be guessed; of a digest nothing is known. The rest is judged where keys are read."""
    for number, entry in enumerate(entries, 1):
        secret = entry.partition(":")[2] or entry
        if not secret.lower().startswith("sha256:") and len(secret) < MIN_PUBLISH_KEY_CHARS:
            raise ValueError(
                f"entry {number} has a secret of fewer than {MIN_PUBLISH_KEY_CHARS} characters; "
                "`allim key NAME` makes one that cannot be guessed"
            )
    return entries


class Settings(BaseSettings):
    """One replica's settings. Units stand in the names."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, env_ignore_empty=True, extra="ignore")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only the values of `load_settings`: the environment it was given, and no other."""
        return (init_settings,)

    domains: Words = DEFAULT_DOMAINS
    redis_url: Annotated[str | None, AfterValidator(_redis_scheme)] = None
    redis_prefix: Annotated[str, AfterValidator(_prefix), Field(min_length=1, max_length=64)] = "allim"
    redis_durable: bool = False
    durability: Literal["memory", "replica", "disk"] = "memory"
    database_url: str = ""
    data_dir: Path = Path("data")
    secret_key: str = ""
    secret_key_file: Path | None = None
    old_secret_keys: Words = ()
    issuers: str = ""
    cookie_name: Annotated[str, AfterValidator(_cookie_name)] = "allim_session"
    authorize_url: Annotated[str | None, AfterValidator(http_url)] = None
    authorize_secret: str = ""
    jwt_audience: str = Field("allim", min_length=1, max_length=256)
    jwt_issuer: str | None = None
    jwt_jwks_url: Annotated[str | None, AfterValidator(http_url)] = None
    public_url: Annotated[str | None, AfterValidator(origin)] = None
    server_id: Annotated[str, AfterValidator(_server_id)] = Field(default_factory=_default_server_id)
    publish_keys: Annotated[Words, AfterValidator(_publish_keys)] = ()
    publish_grants: Words = ()
    catalogue: Path | None = None
    cors_origins: Annotated[Words, AfterValidator(origins)] = ()
    cors_headers: Annotated[Words, AfterValidator(_field_names)] = (
        "traceparent",
        "tracestate",
        "sentry-trace",
        "baggage",
    )
    trusted_proxies: Annotated[Words, AfterValidator(_networks)] = ("127.0.0.1",)
    heartbeat_s: float = Field(15, ge=1, le=300)
    pulse_s: float = Field(5, ge=0.2, le=60)
    history_events: int = Field(256, ge=1, le=100_000)
    history_ttl_s: int = Field(3600, ge=1, le=30 * 86400)
    max_event_bytes: int = Field(65536, ge=64, le=1_048_576)
    stream_buffer_bytes: int = Field(262_144, ge=4096, le=64 * 1_048_576)
    stream_lifetime_s: float = Field(900, ge=1, le=86400)
    drain_s: float = Field(20, ge=0, le=600)
    retry_ms: int = Field(2000, ge=1, le=600_000)
    session_lifetime_s: int = Field(86400, ge=1, le=365 * 86400)
    session_max_s: int = Field(30 * 86400, ge=1, le=365 * 86400)
    ticket_lifetime_s: int = Field(30, ge=1, le=300)
    streams_per_user: int = Field(100, ge=1, le=100_000)
    streams_per_address: int = Field(500, ge=1, le=1_000_000)
    connections_per_address: int = Field(500, ge=1, le=1_000_000)
    streams_per_replica: int = Field(0, ge=0, le=10_000_000)
    memory_max_mb: int = Field(0, ge=0, le=10_000_000)
    publish_events_per_s: int = Field(50_000, ge=1, le=10_000_000)
    publisher_memory_mb: int = Field(0, ge=0, le=1_000_000)
    user_calls_per_min: int = Field(3000, ge=1, le=10_000_000)
    address_calls_per_min: int = Field(3000, ge=1, le=10_000_000)
    sign_in_tries_per_min: int = Field(20, ge=1, le=100_000)
    work_at_once: int = Field(8, ge=1, le=1000)
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["json", "text"] = "json"
    _variables: dict[str, str] = PrivateAttr(default_factory=dict)

    @property
    def variables(self) -> Mapping[str, str]:
        """The variables of the environment that begin with ALLIM_, for the settings of domains."""
        return self._variables

    @property
    def key_in_folder(self) -> bool:
        """Whether the signing key is the one that is kept in the data folder."""
        return not (self._variables.get(f"{PREFIX}SECRET_KEY") or self.secret_key_file or self._tickets_alone())

    def _tickets_alone(self) -> bool:
        """Whether allim signs nothing but tickets: there are no accounts, and others sign the tokens."""
        return not self.domains and bool(self.issuers or self.jwt_jwks_url)

    @property
    def clustered(self) -> bool:
        """Several replicas over Redis, in contrast to one process by itself."""
        return self.redis_url is not None

    def equal(self) -> dict[str, str]:
        """The settings that must be the same on every replica, by the name of their variable."""
        return {PREFIX + name.upper(): str(getattr(self, name)) for name in EQUAL}


_NAMES = tuple(PREFIX + name.upper() for name in Settings.model_fields)
# Kubernetes sets these in every container when a Service is called `allim`.
_OF_KUBERNETES = re.compile(r"ALLIM_(SERVICE_(HOST|PORT(_\w+)?)=|PORT_\d+_(TCP|UDP)(_\w+)?=|PORT=(tcp|udp)://)")


def load_settings(environ: Mapping[str, str] | None = None) -> Settings:
    """Read the environment, and complete what has a default that depends on others.

    Raises: SettingsError naming every wrong variable, without repeating its value: it may be a secret.
    """
    environ = os.environ if environ is None else environ
    given = {
        name: environ[PREFIX + name.upper()] for name in Settings.model_fields if environ.get(PREFIX + name.upper())
    }
    if DOMAINS in environ:  # empty is a choice as well: the hub alone
        given["domains"] = environ[DOMAINS]
    try:
        settings = Settings.model_validate(given)
    except ValidationError as error:
        lines = [
            line(PREFIX + str(detail["loc"][0]).upper(), Settings, detail)
            for detail in error.errors(include_url=False)
        ]
        raise SettingsError("; ".join(lines)) from None
    settings = settings.model_copy(update=_completed(settings))
    settings._variables.update({name: value for name, value in environ.items() if name.startswith(PREFIX)})
    return settings


def unknown_settings(environ: Mapping[str, str] | None = None) -> list[str]:
    """Variables with our prefix that mean nothing: most often a slip of the pen."""
    environ = os.environ if environ is None else environ
    ours = {name for name in environ if name.startswith(PREFIX)} - {*_NAMES, *COMMAND_LINE}
    ours = {name for name in ours if not _OF_KUBERNETES.match(f"{name}={environ[name]}")}
    for every in (False, True):  # domains that are not chosen are imported only if a name is left
        for variable in _of_domains(environ, every=every) if ours else ():
            ours -= {variable.name, variable.former}
    return sorted(ours)


def warnings(environ: Mapping[str, str] | None = None) -> list[str]:
    """A line for each variable that looks like a setting and is none, has another name now, or is to go.

    They stop no start: a setting of a newer version may be there when an older one is started again.
    """
    environ = os.environ if environ is None else environ
    unknown = unknown_settings(environ)
    of_domains = _of_domains(environ, every=bool(unknown))
    names = (*_NAMES, *(variable.name for variable in of_domains))
    lines = []
    for name in unknown:
        near = get_close_matches(name, names, n=1, cutoff=0.75)
        lines.append(f"{name} is no setting, ignored{f'; did you mean {near[0]}?' if near else ''}")
    lines += [
        f"{name.removeprefix(PREFIX)} is set and {name} is not: only {name} is a setting"
        for name in names
        if environ.get(name.removeprefix(PREFIX)) and not environ.get(name)
    ]
    lines += [
        f"{variable.former} is now {variable.name}"
        + (", which is set, too: ignored" if environ.get(variable.name) else "; the old name is read until 1.0")
        for variable in of_domains
        if environ.get(variable.former)
    ]
    lines += [
        f"{name} works until 1.0: describe the issuer in {PREFIX}ISSUERS instead"
        for name in (f"{PREFIX}JWT_ISSUER", f"{PREFIX}JWT_AUDIENCE")
        if environ.get(name)
    ]
    return lines


def _of_domains(environ: Mapping[str, str], *, every: bool) -> list[Variable]:
    """Return the variables of the chosen domains, and with `every` also those of the other built-in ones."""
    from allim.domains.builtin import BUILT_IN
    from allim.domains.choice import known  # late: it imports the domains

    given = environ.get(DOMAINS)
    chosen = DEFAULT_DOMAINS if given is None else [name.strip() for name in given.split(",")]
    found = known([*chosen, *(BUILT_IN if every else ())])
    return [variable for domain in found for variable in variables(domain.name, domain.settings)]


@contextmanager
def naming(setting: str, kind: type[ValueError] = ValueError) -> Iterator[None]:
    """Turn an error of this kind, raised inside, into an error of this setting.

    Raises: SettingsError.
    """
    try:
        yield
    except kind as error:
        advice = error.advice if isinstance(error, Unusable) else ""
        raise SettingsError(f"{PREFIX}{setting}: {error}", advice) from error


def load_or_create_secret(data_dir: Path) -> str:
    """The signing key kept in the data folder; the first process to come makes it.

    Raises: SettingsError when the folder cannot be written.
    """
    path = data_dir / "secret_key"
    try:
        data_folder.make(data_dir)
        fresh = data_dir / f".secret_key.{secrets.token_hex(4)}"
        fresh.touch(0o600)
        fresh.write_text(secrets.token_urlsafe(48), "ascii")
        try:
            os.link(fresh, path)  # fails when another process was first: then its key is the key
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
    except OSError as error:
        raise SettingsError(
            f"{PREFIX}DATA_DIR: {error.strerror}: {path}",
            f"let this user write the folder, name another in {PREFIX}DATA_DIR, or set {PREFIX}SECRET_KEY",
        ) from error
    return read_secret(path, "DATA_DIR", "remove it, and the next start makes a new one")


def read_secret(path: Path, setting: str, advice: str) -> str:
    """Return the signing key that a file holds.

    Raises: SettingsError that names the setting when the file cannot be read or its key is too short.
    """
    try:
        secret = path.read_text("utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "must be text"
        raise SettingsError(f"{PREFIX}{setting}: {reason}: {path}", advice) from error
    if len(secret) < MIN_SECRET_CHARS:
        raise SettingsError(f"{PREFIX}{setting}: {path} must hold {MIN_SECRET_CHARS} characters or more", advice)
    return secret


def own_secret(secret_key: str, secret_key_file: Path | None, data_dir: Path) -> str:
    """Return the signing key: ALLIM_SECRET_KEY, else that of ALLIM_SECRET_KEY_FILE, else the data folder's."""
    if secret_key:
        return secret_key
    if secret_key_file is not None:
        return read_secret(secret_key_file, "SECRET_KEY_FILE", _NEW_SECRET)
    return load_or_create_secret(data_dir)


def _completed(settings: Settings) -> dict[str, Any]:
    database_url = settings.database_url or f"sqlite:///{settings.data_dir.absolute() / 'allim.db'}"
    if settings.secret_key and len(settings.secret_key) < MIN_SECRET_CHARS:
        raise SettingsError(f"{PREFIX}SECRET_KEY: must have at least {MIN_SECRET_CHARS} characters", _NEW_SECRET)
    if settings.stream_buffer_bytes < settings.max_event_bytes:
        raise SettingsError(f"{PREFIX}STREAM_BUFFER_BYTES: must be at least {PREFIX}MAX_EVENT_BYTES")
    if any(len(key) < MIN_SECRET_CHARS for key in settings.old_secret_keys):
        raise SettingsError(
            f"{PREFIX}OLD_SECRET_KEYS: each must have at least {MIN_SECRET_CHARS} characters",
            "separate them by commas, and drop a shorter one: tokens that it signed are not taken",
        )
    if (settings.jwt_issuer is None) != (settings.jwt_jwks_url is None):
        raise SettingsError(f"{PREFIX}JWT_ISSUER, {PREFIX}JWT_JWKS_URL: give both, or neither")
    if (settings.authorize_url is None) != (settings.authorize_secret == ""):
        raise SettingsError(f"{PREFIX}AUTHORIZE_URL, {PREFIX}AUTHORIZE_SECRET: give both, or neither")
    if settings.authorize_secret and len(settings.authorize_secret) < MIN_SECRET_CHARS:
        raise SettingsError(
            f"{PREFIX}AUTHORIZE_SECRET: must have at least {MIN_SECRET_CHARS} characters", _NEW_SECRET
        )
    if settings.durability != "memory" and not settings.clustered:
        raise SettingsError(f"{PREFIX}DURABILITY: {settings.durability} needs {PREFIX}REDIS_URL")
    if settings.clustered and not (settings.secret_key or settings.secret_key_file):
        raise SettingsError(
            f"{PREFIX}SECRET_KEY: required when {PREFIX}REDIS_URL is set: all replicas must sign with the same key",
            _NEW_SECRET,
        )
    if settings._tickets_alone() and not (settings.secret_key or settings.secret_key_file):
        secret_key = secrets.token_urlsafe(48)  # a ticket lives for seconds: no other process needs the key
    else:
        secret_key = own_secret(settings.secret_key, settings.secret_key_file, settings.data_dir)
    return {"database_url": database_url, "secret_key": secret_key}


_NEW_SECRET = "`openssl rand -hex 32` makes one; every replica gets the same"
