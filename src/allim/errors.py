"""What can go wrong, by name. Raised early, translated once, at the edge (`http/problems.py`).

Every error has a `code` (stable, for programs) and says whether trying again makes sense.
"""

from collections.abc import Sequence
from typing import ClassVar, NamedTuple


class FieldError(NamedTuple):
    """One thing wrong with one field.

    Shape: `field` is a path as the sender wrote it: `email`, `[3].topic`, `topics`, `Idempotency-Key`.
    """

    field: str
    message: str


class AllimError(Exception):
    """The root. Its text is written for the person who sent the request."""

    code: ClassVar[str] = "internal"
    retryable: ClassVar[bool] = False

    def __init__(self, detail: str, fields: Sequence[FieldError] = ()) -> None:
        super().__init__(detail)
        self.detail = detail
        self.fields = tuple(fields)


class Invalid(AllimError):
    """The request says something it may not say."""

    code = "invalid"

    @classmethod
    def field(cls, field: str, message: str) -> "Invalid":
        return cls(f"{field}: {message}", [FieldError(field, message)])


class BadRequest(AllimError):
    """The request's head says something that no client of HTTP says."""

    code = "bad_request"


class TooLarge(AllimError):
    """A body or an event is over its limit."""

    code = "too_large"


class Unauthenticated(AllimError):
    """Nobody, or nobody we know, is asking."""

    code = "unauthenticated"


class SignedOut(Unauthenticated):
    """The session was ended by who held it."""

    code = "signed_out"


class Kicked(Unauthenticated):
    """The session was ended by an operator."""

    code = "kicked"


class Forbidden(AllimError):
    """We know who asks; they may not have it."""

    code = "forbidden"


class NotFound(AllimError):
    """There is no such thing, or none that the asker may know of."""

    code = "not_found"


class Conflict(AllimError):
    """It contradicts what is already stored."""

    code = "conflict"


class Unavailable(AllimError):
    """A part we need does not answer. Nothing was promised; try again."""

    code = "unavailable"
    retryable = True

    def __init__(self, detail: str, retry_after_s: int = 2) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class TooMany(AllimError):
    """More than a limit allows. Nothing was done."""

    code = "too_many"
    retryable = True

    def __init__(self, detail: str, retry_after_s: int) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s
