"""Snapshots over HTTP."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from allim.domains.snapshots.models import NewSnapshot, view, whole
from allim.domains.snapshots.service import Service
from allim.http.bodies import parse, read_json_or_nothing
from allim.http.gate import Gate
from allim.http.paging import read_page
from allim.http.routing import route

_MAX_BODY_BYTES = 1024
_PATH = "/api/accounts/me/snapshots"


def routes(service: Service, gate: Gate) -> list[Route]:
    """`/api/accounts/me/snapshots` and `/api/accounts/me/snapshots/{id}`."""

    async def request_snapshot(request: Request) -> Response:
        identity = await gate.identify(request)
        parse(NewSnapshot, await read_json_or_nothing(request, _MAX_BODY_BYTES))
        snapshot = await service.request(identity.subject)
        return _answer(view(snapshot).model_dump(), 202, {"Location": f"{_PATH}/{snapshot.id}"})

    async def snapshots(request: Request) -> Response:
        identity = await gate.identify(request)
        items, next_cursor = await service.snapshots(identity.subject, read_page(request))
        return _answer({"items": [view(item).model_dump() for item in items], "nextCursor": next_cursor})

    async def snapshot(request: Request) -> Response:
        identity = await gate.identify(request)
        return _answer(whole(await service.snapshot(identity.subject, request.path_params["id"])))

    return [
        route(_PATH, get=snapshots, post=request_snapshot),
        route(_PATH + "/{id}", get=snapshot),
    ]


def _answer(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(content, status, {"Cache-Control": "no-store", **(headers or {})})
