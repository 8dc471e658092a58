"""Health and readiness. Health asks no other server: a replica is not restarted because its database is down."""

import asyncio
from collections.abc import Awaitable, Callable, Collection, Mapping
from functools import partial
from typing import Literal

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from allim.errors import AllimError
from allim.http.bodies import Body
from allim.http.routing import Answer, Resource, operation, route

log = structlog.get_logger(__name__)

CHECK_TIMEOUT_S = 2.0
KEEP_S = 1.0  # a result of another process

Check = Callable[[], Awaitable[str | None]]
"""Returns None when all is well, or a fault that leaves the replica ready; raises when it is not ready."""


class Alive(Body):
    """`GET /healthz`."""

    status: Literal["alive"] = "alive"


class Readiness(Body):
    """`GET /readyz`: `ok`, a remark or a reason for each check."""

    status: Literal["ready", "not ready"]
    checks: dict[str, str]


class Question:
    """A check that asks another process: once at a time, and once in `keep_s` seconds, for all callers.

    `/readyz` is public, so it must not pass each call on to the database.
    """

    def __init__(self, name: str, check: Check, timeout_s: float, keep_s: float) -> None:
        self._ask = partial(_result, name, check, timeout_s)
        self._keep_s = keep_s
        self._asked: asyncio.Task[tuple[bool, str]] | None = None
        self._asked_at = 0.0

    async def result(self) -> tuple[bool, str]:
        now = asyncio.get_running_loop().time()
        if self._asked is None or (self._asked.done() and now - self._asked_at >= self._keep_s):
            self._asked, self._asked_at = asyncio.create_task(self._ask(), name="allim readiness"), now
        return await asyncio.shield(self._asked)  # a caller that leaves does not cancel it for others


def routes(
    checks: Mapping[str, Check],
    timeout_s: float = CHECK_TIMEOUT_S,
    asking: Collection[str] = (),
    keep_s: float = KEEP_S,
) -> list[Resource]:
    """`/healthz` and `/readyz`; the latter runs all checks at once, each under its own deadline.

    Shape: `asking` are the names of the checks that ask another process. Their results are kept; the others, a drain
    among them, show at once.
    """
    results_of: dict[str, Callable[[], Awaitable[tuple[bool, str]]]] = {
        name: Question(name, check, timeout_s, keep_s).result
        if name in asking
        else partial(_result, name, check, timeout_s)
        for name, check in checks.items()
    }

    @operation(answers={200: Answer("Alive.", Alive)})
    async def healthz(_request: Request) -> Response:
        """Tell that the replica is alive."""
        return _answer(200, Alive())

    @operation(answers={200: Answer("Ready.", Readiness), 503: Answer("Not ready.", Readiness)})
    async def readyz(_request: Request) -> Response:
        """Tell whether the replica is ready.

        The broker carries events, the store takes writes, and the replica is not about to leave.
        """
        results = await asyncio.gather(*(result() for result in results_of.values()))
        ready = all(well for well, _ in results)
        told = dict(zip(checks, (text for _, text in results), strict=True))
        content = Readiness(status="ready" if ready else "not ready", checks=told)
        return _answer(200 if ready else 503, content)

    return [
        route("/healthz", tag="Running it", get=healthz),
        route("/readyz", tag="Running it", get=readyz),
    ]


def _answer(status: int, content: Body) -> Response:
    return JSONResponse(content.model_dump(), status, {"Cache-Control": "no-store"})


async def _result(name: str, check: Check, timeout_s: float) -> tuple[bool, str]:
    """Return whether the check leaves the replica ready; and `ok`, or a reason that is safe to publish."""
    try:
        async with asyncio.timeout(timeout_s):
            return True, await check() or "ok"
    except AllimError as error:
        return False, error.detail
    except TimeoutError:
        return False, f"no answer within {timeout_s:g} s"
    except Exception:
        log.exception("readiness check failed", check=name)
        return False, "failed; see the log"
