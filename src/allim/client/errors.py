"""How a publish or a stream fails. A pool of processes passes these on, so they can be pickled."""

from typing import Any


class ClientError(Exception):
    """The server refused, for good. A refused publish is certainly not stored.

    Shape: `status` is the HTTP status, `problem` the decoded problem+json; where there was none, at most `detail`.
    """

    def __init__(self, status: int, problem: dict[str, Any]) -> None:
        super().__init__(status, problem)
        self.status = status
        self.problem = problem

    def __str__(self) -> str:
        return str(self.problem.get("detail") or f"HTTP status {self.status}")


class NotConfirmed(Exception):
    """The server did not confirm the publish in time. The same idempotency key may be used to try again later.

    Shape: `may_be_stored` is False when certainly no attempt stored anything: no connection was made, or the rate
    was used up.
    """

    def __init__(self, reason: str, idempotency_key: str, may_be_stored: bool) -> None:
        super().__init__(reason, idempotency_key, may_be_stored)
        self.reason = reason
        self.idempotency_key = idempotency_key
        self.may_be_stored = may_be_stored

    def __str__(self) -> str:
        stored = "the event may be stored" if self.may_be_stored else "the event is not stored"
        return f"{self.reason}; {stored}; idempotency key {self.idempotency_key}"
