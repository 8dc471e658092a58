"""Sign-in by a function of the application that embeds allim: it knows its users by its own means."""

import inspect
import math
from collections.abc import Awaitable, Callable

from starlette.requests import HTTPConnection

from allim.access.claims import is_grant
from allim.identity import Identity, is_name

Authenticate = Callable[[HTTPConnection], Identity | Awaitable[Identity | None] | None]
"""Returns the identity of a request, made by `Identity.of`, or None for one that may have a token of its own."""


async def authenticated(authenticate: Authenticate, connection: HTTPConnection) -> Identity | None:
    """Return the identity that the application's function gives. It may be `async` or not.

    Raises: TypeError, ValueError when it is no identity; the function's errors.
    """
    answer = authenticate(connection)
    identity = await answer if inspect.isawaitable(answer) else answer
    if identity is None:
        return None
    if not isinstance(identity, Identity):
        raise TypeError(f"authenticate must return an Identity or None, not {type(identity).__name__}")
    if not is_name(identity.subject) or not is_name(identity.session):
        raise ValueError("authenticate: subject and session must have 1 to 255 characters, no control character")
    if not all(map(is_grant, identity.topics)):
        raise ValueError("authenticate: topics must be topics, exact or `prefix:*`")
    if type(identity.expires_at) not in (int, float) or not math.isfinite(identity.expires_at):
        raise ValueError("authenticate: expires_at must be a moment in Unix seconds")
    return identity._replace(issuer="")
