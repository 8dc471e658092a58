"""Publish keys over HTTP, for operators."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from allim.access.gate import Gate
from allim.domains.keys.models import IssuedView, KeyPage, KeyView, NewKey, Rotation, issued_view, view
from allim.domains.keys.service import Issued, Service
from allim.errors import Conflict, NotFound
from allim.http.bodies import parse, read_json_or_nothing, read_model
from allim.http.paging import PARAMETERS, read_page
from allim.http.routing import Answer, Caller, Parameter, Resource, operation, route

_MAX_BODY_BYTES = 64 * 1024
_PATH = "/api/keys"
_ID = Parameter("path", "id", str, "The key's `id`.")


def routes(service: Service, gate: Gate) -> list[Resource]:
    """`/api/keys`, `/api/keys/{id}` and `/api/keys/{id}/rotation`.

    A key that was deleted, or whose grace is over, is refused by every replica within 2 s (`publishers.CACHE_S`).
    """

    @operation(
        caller=Caller.OPERATOR,
        body=NewKey,
        answers={201: Answer("Created. The secret is shown this once.", IssuedView, ["Location"])},
    )
    async def create_key(request: Request) -> Response:
        """Create a publish key."""
        operator = await gate.require_operator(request)
        new = await read_model(request, NewKey, _MAX_BODY_BYTES)
        return _issued(await service.create(new.name, new.topics, new.types, operator.subject))

    @operation(
        caller=Caller.OPERATOR,
        parameters=[_ID],
        body=Rotation | None,
        answers={201: Answer("The successor. The secret is shown this once.", IssuedView, ["Location"])},
        fails=[NotFound, Conflict],
    )
    async def rotate_key(request: Request) -> Response:
        """Replace a publish key.

        The old one stays good for the grace. 409 when it has a successor already.
        """
        operator = await gate.require_operator(request)
        rotation = parse(Rotation, await read_json_or_nothing(request, _MAX_BODY_BYTES))
        return _issued(await service.rotate(request.path_params["id"], rotation.grace_s, operator.subject))

    @operation(caller=Caller.OPERATOR, parameters=[_ID], answers={204: Answer("Deleted.")}, fails=[NotFound])
    async def delete_key(request: Request) -> Response:
        """Delete a publish key.

        Every replica refuses it within two seconds.
        """
        operator = await gate.require_operator(request)
        await service.delete(request.path_params["id"], operator.subject)
        return Response(status_code=204)

    @operation(caller=Caller.OPERATOR, parameters=PARAMETERS, answers={200: Answer("One page.", KeyPage)})
    async def keys(request: Request) -> Response:
        """List the publish keys, newest first, without their secrets."""
        await gate.require_operator(request)
        items, next_cursor = await service.keys(read_page(request))
        page = KeyPage.model_construct(items=[view(item) for item in items], next_cursor=next_cursor)
        return _answer(page.model_dump())

    @operation(caller=Caller.OPERATOR, parameters=[_ID], answers={200: Answer("The key.", KeyView)}, fails=[NotFound])
    async def key(request: Request) -> Response:
        """Show a publish key without its secret."""
        await gate.require_operator(request)
        return _answer(view(await service.key(request.path_params["id"])).model_dump())

    return [
        route(_PATH, tag="Publish keys", get=keys, post=create_key),
        route(_PATH + "/{id}", tag="Publish keys", get=key, delete=delete_key),
        route(_PATH + "/{id}/rotation", tag="Publish keys", post=rotate_key),
    ]


def _issued(issued: Issued) -> Response:
    content = issued_view(issued.key, issued.secret).model_dump()
    return _answer(content, 201, {"Location": f"{_PATH}/{issued.key.id}"})


def _answer(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(content, status, {"Cache-Control": "no-store", **(headers or {})})
