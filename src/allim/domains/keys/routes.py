"""Publish keys over HTTP, for operators."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from allim.domains.keys.models import NewKey, Rotation, issued_view, view
from allim.domains.keys.service import Issued, Service
from allim.http.bodies import parse, read_json_or_nothing, read_model
from allim.http.gate import Gate
from allim.http.paging import read_page
from allim.http.routing import route

_MAX_BODY_BYTES = 64 * 1024
_PATH = "/api/keys"


def routes(service: Service, gate: Gate) -> list[Route]:
    """`/api/keys`, `/api/keys/{id}` and `/api/keys/{id}/rotation`.

    A key that was deleted, or whose grace is over, is refused by every replica within 2 s (`publishers.CACHE_S`).
    """

    async def create(request: Request) -> Response:
        operator = await gate.require_operator(request)
        new = await read_model(request, NewKey, _MAX_BODY_BYTES)
        return _issued(await service.create(new.name, new.topics, new.types, operator.subject))

    async def rotate(request: Request) -> Response:
        operator = await gate.require_operator(request)
        rotation = parse(Rotation, await read_json_or_nothing(request, _MAX_BODY_BYTES))
        return _issued(await service.rotate(request.path_params["id"], rotation.grace_s, operator.subject))

    async def delete(request: Request) -> Response:
        operator = await gate.require_operator(request)
        await service.delete(request.path_params["id"], operator.subject)
        return Response(status_code=204)

    async def keys(request: Request) -> Response:
        await gate.require_operator(request)
        items, next_cursor = await service.keys(read_page(request))
        return _answer({"items": [view(item).model_dump() for item in items], "nextCursor": next_cursor})

    async def key(request: Request) -> Response:
        await gate.require_operator(request)
        return _answer(view(await service.key(request.path_params["id"])).model_dump())

    return [
        route(_PATH, get=keys, post=create),
        route(_PATH + "/{id}", get=key, delete=delete),
        route(_PATH + "/{id}/rotation", post=rotate),
    ]


def _issued(issued: Issued) -> Response:
    content = issued_view(issued.key, issued.secret).model_dump()
    return _answer(content, 201, {"Location": f"{_PATH}/{issued.key.id}"})


def _answer(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(content, status, {"Cache-Control": "no-store", **(headers or {})})
