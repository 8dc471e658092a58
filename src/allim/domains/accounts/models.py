"""The bodies of requests and answers."""

import unicodedata
from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from allim.domains.accounts.store import Account, SessionRow
from allim.http.bodies import Body, Instant
from allim.times import utc

Registration = Literal["open", "closed"]
"""Whether accounts can be made."""

_EMAIL_MAX = 254  # RFC 5321, 4.5.3.1.3, without the angle brackets
_LOCAL_MAX = 64
_NAME_MAX = 100
# Left-to-right marks and overrides: they make one name look like another.
_BIDI = set("\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


_INVISIBLE = {"Cc", "Cf", "Cs", "Zs", "Zl", "Zp"}  # not Cn: an emoji newer than our tables is to be seen


def normal_email(text: str) -> str:
    """The form under which an address is unique.

    Only ASCII letters are lowered. Unicode case mapping would make one address out of two that belong to
    different people (`ı` and `i`, `ß` and `ss`).
    Raises: ValueError when it cannot be an address.
    """
    email = unicodedata.normalize("NFC", text.strip())
    email = "".join(char.lower() if char.isascii() else char for char in email)
    if len(email) > _EMAIL_MAX:
        raise ValueError(f"must have at most {_EMAIL_MAX} characters")
    local, _, domain = email.partition("@")
    if any(_is_hidden(char) or char.isspace() for char in email) or email.count("@") != 1:
        raise ValueError("must be an email address")
    if not 1 <= len(local) <= _LOCAL_MAX or not all(domain.split(".")):
        raise ValueError("must be an email address")
    return email


def _name(text: str) -> str:
    name = unicodedata.normalize("NFC", text.strip())
    if all(unicodedata.category(char) in _INVISIBLE for char in name):
        raise ValueError("must have at least 1 visible character")
    if len(name) > _NAME_MAX:
        raise ValueError(f"must have at most {_NAME_MAX} characters")
    if any(_is_hidden(char) for char in name):
        raise ValueError("must not have control characters")
    return name


def clean_name(text: object) -> str | None:
    """A name that somebody else chose, made to follow the rules of names; None when nothing of it can be seen."""
    if not isinstance(text, str):
        return None
    visible = "".join(char for char in text if not _is_hidden(char))
    try:
        return _name(unicodedata.normalize("NFC", visible).strip()[:_NAME_MAX])
    except ValueError:
        return None


def _is_hidden(char: str) -> bool:
    # Other format characters (Cf) stay: joiners belong to names in Persian, and to emoji.
    return unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"} or char in _BIDI


# What a schema can tell of the rules above, for the description.
_EMAIL_EXAMPLE = {"examples": ["ada@example.org"]}
_PASSWORD_EXAMPLE = {"examples": ["correct horse battery"]}
_PLAIN = r"@\s\x00-\x1f\x7f-\x9f"
_EMAIL_SCHEMA = {
    "pattern": rf"^\s*[^{_PLAIN}]{{1,{_LOCAL_MAX}}}@[^.{_PLAIN}]+(\.[^.{_PLAIN}]+)*\s*$",
    "maxLength": _EMAIL_MAX,
    **_EMAIL_EXAMPLE,
}
_NAME_SCHEMA = {"pattern": r"\S", "maxLength": _NAME_MAX, "examples": ["Ada"]}


class NewAccount(Body):
    """`POST /api/accounts`."""

    email: Annotated[str, AfterValidator(normal_email), Field(json_schema_extra=_EMAIL_SCHEMA)]
    name: Annotated[str, AfterValidator(_name), Field(json_schema_extra=_NAME_SCHEMA)]
    password: Annotated[str, Field(min_length=8, max_length=1024, json_schema_extra=_PASSWORD_EXAMPLE)]


class Credentials(Body):
    """`POST /api/session`. Judged by the service: whatever is wrong gets the same answer."""

    email: Annotated[str, Field(max_length=1024, json_schema_extra=_EMAIL_EXAMPLE)]
    password: Annotated[str, Field(max_length=1024, json_schema_extra=_PASSWORD_EXAMPLE)]


class AccountView(Body):
    """An account as its owner sees it; one that was made by a provider may have no email."""

    id: str
    email: str | None
    name: str
    created_at: Instant
    has_password: bool


class NewPassword(Body):
    """`POST /api/accounts/me/password`."""

    current_password: Annotated[str, Field(max_length=1024, json_schema_extra=_PASSWORD_EXAMPLE)]
    new_password: Annotated[str, Field(min_length=8, max_length=1024, json_schema_extra=_PASSWORD_EXAMPLE)]


class Deletion(Body):
    """`POST /api/accounts/me/deletion`. An account with a password is deleted with it, any other after a sign-in."""

    password: Annotated[str, Field(max_length=1024, json_schema_extra=_PASSWORD_EXAMPLE)] | None = None


class SessionView(Body):
    """A session of the account; `current` is the one that asks."""

    id: str
    created_at: Instant
    seen_at: Instant
    expires_at: Instant
    address: str | None
    agent: str | None
    current: bool


class SessionList(Body):
    """The sessions that have not ended, the one that was seen last first."""

    items: list[SessionView]


class SessionLife(Body):
    """Whose session it is, and how long its token is still valid.

    `renewalDue` says that the token is past half of its life and that a renewed one would be valid for longer.
    """

    user: str
    expires_in_s: float
    lifetime_s: float
    renewal_due: bool


class SignedIn(Body):
    """The account, and the token of its new session."""

    account: AccountView
    token: str


class ProviderNames(Body):
    """The providers over which one can sign in here, and whether accounts can be made."""

    providers: list[str]
    registration: Registration


class Renewed(Body):
    """A session's new token, and until when it is good."""

    token: str
    expires_at: Instant


def view(account: Account) -> AccountView:
    """The account without its secret."""
    return AccountView.model_construct(
        id=account.id,
        email=account.email,
        name=account.name,
        created_at=utc(account.created_at),
        has_password=account.password_hash is not None,
    )


def session_view(session: SessionRow, current: str) -> SessionView:
    """Return the session as its owner sees it, who asks with the session `current`."""
    return SessionView.model_construct(
        id=session.id,
        created_at=utc(session.created_at),
        seen_at=utc(session.seen_at),
        expires_at=utc(session.expires_at),
        address=session.address,
        agent=session.agent,
        current=session.id == current,
    )
