"""Alive, and ready. Alive asks nothing of anyone: a replica is not restarted because its database is down."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from allim.errors import AllimError

log = structlog.get_logger(__name__)

CHECK_TIMEOUT_S = 2.0

Check = Callable[[], Awaitable[None]]
"""Returns when all is well, and raises when it is not."""


def routes(checks: Mapping[str, Check], timeout_s: float = CHECK_TIMEOUT_S) -> list[Route]:
    """`/healthz` and `/readyz`; the latter runs all checks at once, each under its own deadline."""

    async def healthz(_request: Request) -> Response:
        return _answer(200, {"status": "alive"})

    async def readyz(_request: Request) -> Response:
        results = await asyncio.gather(*(_result(name, check, timeout_s) for name, check in checks.items()))
        ready = all(result == "ok" for result in results)
        content = {
            "status": "ready" if ready else "not ready",
            "checks": dict(zip(checks, results, strict=True)),
        }
        return _answer(200 if ready else 503, content)

    return [Route("/healthz", healthz), Route("/readyz", readyz)]


def _answer(status: int, content: object) -> Response:
    return JSONResponse(content, status, {"Cache-Control": "no-store"})


async def _result(name: str, check: Check, timeout_s: float) -> str:
    """`ok`, or a reason that is safe to show to anyone."""
    try:
        async with asyncio.timeout(timeout_s):
            await check()
    except AllimError as error:
        return error.detail
    except TimeoutError:
        return f"no answer within {timeout_s:g} s"
    except Exception:
        log.exception("readiness check failed", check=name)
        return "failed; see the log"
    return "ok"
