"""The errors of allim. They are converted to responses in one place, `http/problems.py`.

Every error has a `code` (stable, for programs) and tells whether a retry makes sense.
"""

from collections.abc import Iterator, Sequence
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
    """The request has no valid credentials.

    Shape: `reason` is for the log and a metric, never for the answer: a key of `allim.http.refused.REASONS`, "" for a
    caller without credentials.
    """

    code = "unauthenticated"

    def __init__(self, detail: str, *, reason: str = "") -> None:
        super().__init__(detail)
        self.reason = reason


class SignedOut(Unauthenticated):
    """The session was ended by its own user."""

    code = "signed_out"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, reason=self.code)


class Kicked(Unauthenticated):
    """The session was ended by an operator."""

    code = "kicked"

    def __init__(self, detail: str) -> None:
        super().__init__(detail, reason=self.code)


class Forbidden(AllimError):
    """The caller is known, but not permitted."""

    code = "forbidden"


class RegistrationClosed(Forbidden):
    """Accounts are not made here."""

    code = "registration_closed"


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


class AuthorizeUnavailable(Unavailable):
    """The application that decides on topics does not answer, or gives an answer that cannot be used."""

    code = "authorize_unavailable"


class TooMany(AllimError):
    """A limit is exceeded. The request had no effect."""

    code = "too_many"
    retryable = True

    def __init__(self, detail: str, retry_after_s: int) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class Unusable(ValueError):
    """A part that the operator has set up cannot be used.

    Shape: the text names the fault in one line, `advice` a remedy in another. Neither holds a secret.
    """

    def __init__(self, detail: str, advice: str = "") -> None:
        super().__init__(detail)
        self.advice = advice


def causes(error: BaseException) -> Iterator[BaseException]:
    """The error, its cause or context, and so on."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
