"""The errors of allim. They are converted to responses in one place, `http/problems.py`.

Every error has a `code` (stable, for programs) and tells whether a retry makes sense.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple


class FieldError(NamedTuple):
    """A fault of one field.

    Shape: `field` is the path in the request: `email`, `[3].topic`, `topics`, `Idempotency-Key`.
    """

    field: str
    message: str


class AllimError(Exception):
    """The base of all errors. Its text is for the sender of the request."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, fields: Sequence[FieldError] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fields = tuple(fields)


class Invalid(AllimError):
    """A field of the request is wrong."""

    code = "invalid"

    @classmethod
    def field(cls, field: str, message: str) -> "Invalid":
        return cls(f"{field}: {message}", [FieldError(field, message)])


class BadRequest(AllimError):
    """The request's headers violate HTTP."""

    code = "bad_request"


class TooLarge(AllimError):
    """A body or an event is over its limit."""

    code = "too_large"


class Unauthenticated(AllimError):
    """The request has no valid credentials."""

    code = "unauthenticated"


class SignedOut(Unauthenticated):
    """The session was ended by its own user."""

    code = "signed_out"


class Kicked(Unauthenticated):
    """The session was ended by an operator."""

    code = "kicked"


class Forbidden(AllimError):
    """The caller is known, but not permitted."""

    code = "forbidden"


class NotFound(AllimError):
    """It does not exist, or the caller may not know that it exists."""

    code = "not_found"


class Conflict(AllimError):
    """It contradicts stored data."""

    code = "conflict"


class OtherUser(Conflict):
    """The request is meant for another user than the one whose session it carries."""

    code = "other_user"


class Unavailable(AllimError):
    """A needed service does not answer. The request may be repeated."""

    code = "unavailable"
    retryable = True

    def __init__(self, detail: str, retry_after_s: int = 2) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class TooMany(AllimError):
    """A limit is exceeded. The request had no effect."""

    code = "too_many"
    retryable = True

    def __init__(self, detail: str, retry_after_s: int) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s
