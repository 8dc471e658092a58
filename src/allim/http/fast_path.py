"""The declarations of the fast path: a handler that starts a request's work before any ASGI task is made.

`server/fast_path.py` calls such handlers; under another server they are not used. A fast handler checks a request
with the functions of its regular handler, in their order. Source: docs/decisions/0012-fast-path.md.
"""

import asyncio
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, NamedTuple

from starlette.responses import Response

RawHeaders = Mapping[bytes, bytes]


class Success(NamedTuple):
    """A complete answer to a successful request. Shape: `headers` are its own headers beside the content type."""

    status: int
    media_type: str
    body: bytes
    headers: Mapping[str, str]


class Pending(NamedTuple):
    """The work that a fast handler has started.

    Shape: `answer` makes the answer from the result of `done`, or an outcome for the regular path; it raises the
    errors that the handler would raise.
    """

    done: "asyncio.Future[Any]"
    answer: "Callable[[Any], Success | Judged]"


FastHandler = Callable[[RawHeaders, bytes], Pending | None]
"""Starts the work of a request, given its headers and body. Returns None, or raises, if the regular path is
needed.
"""


class Judged(NamedTuple):
    """The outcome of a request that the regular path has to answer. Shape: `headers` go into the answer."""

    answer: Success | Exception
    headers: Mapping[str, str]
    traceback: TracebackType | None = None

    def response(self) -> Response:
        """Return the answer. Raises: the answer, if it is an error."""
        if isinstance(self.answer, Exception):
            try:
                raise self.answer.with_traceback(self.traceback)  # the error may be that of many requests
            finally:
                del self  # the traceback holds this frame: without this, each refusal would make a reference cycle
        return Response(self.answer.body, self.answer.status, media_type=self.answer.media_type)
