"""Snapshots over HTTP."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from allim.access.gate import Gate
from allim.access.rates import Policy
from allim.domains.snapshots.models import NewSnapshot, SnapshotPage, SnapshotView, WholeSnapshot, view, whole
from allim.domains.snapshots.service import Service
from allim.errors import Conflict, NotFound
from allim.http.bodies import parse, read_json_or_nothing
from allim.http.paging import PARAMETERS, read_page
from allim.http.routing import Answer, Caller, Parameter, Resource, operation, route

_MAX_BODY_BYTES = 1024
_PATH = "/api/accounts/me/snapshots"


def routes(service: Service, gate: Gate, limit: Policy) -> list[Resource]:
    """`/api/accounts/me/snapshots` and `/api/accounts/me/snapshots/{id}`; `limit` counts an account's requests."""

    @operation(
        caller=Caller.USER,
        body=NewSnapshot | None,
        answers={202: Answer("Accepted; it will be generated.", SnapshotView, ["Location"])},
        fails=[NotFound, Conflict],
    )
    async def request_snapshot(request: Request) -> Response:
        """Request a snapshot.

        Some replica generates it in the background and tells the account's streams: `snapshots.progress` three
        times, then `snapshots.generated`. 409 while five are pending.
        """
        identity = await gate.identify(request)
        parse(NewSnapshot, await read_json_or_nothing(request, _MAX_BODY_BYTES))
        await gate.limit(request, identity, limit)
        snapshot = await service.request(identity.subject)
        return _answer(view(snapshot).model_dump(), 202, {"Location": f"{_PATH}/{snapshot.id}"})

    @operation(caller=Caller.USER, parameters=PARAMETERS, answers={200: Answer("One page.", SnapshotPage)})
    async def snapshots(request: Request) -> Response:
        """List the account's snapshots, newest first."""
        identity = await gate.identify(request)
        items, next_cursor = await service.snapshots(identity.subject, read_page(request))
        page = SnapshotPage.model_construct(items=[view(item) for item in items], next_cursor=next_cursor)
        return _answer(page.model_dump())

    @operation(
        caller=Caller.USER,
        parameters=[Parameter("path", "id", str, "The snapshot's `id`.")],
        answers={200: Answer("The snapshot.", WholeSnapshot)},
        fails=[NotFound],
    )
    async def snapshot(request: Request) -> Response:
        """Show one snapshot with its content.

        404 also for somebody else's.
        """
        identity = await gate.identify(request)
        found = await service.snapshot(identity.subject, request.path_params["id"])
        return _answer(whole(found).model_dump())

    return [
        route(_PATH, tag="Snapshots", get=snapshots, post=request_snapshot),
        route(_PATH + "/{id}", tag="Snapshots", get=snapshot),
    ]


def _answer(content: object, status: int = 200, headers: dict[str, str] | None = None) -> Response:
    return JSONResponse(content, status, {"Cache-Control": "no-store", **(headers or {})})
