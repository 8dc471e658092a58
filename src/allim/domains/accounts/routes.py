"""Accounts over HTTP."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from allim.domains.accounts.models import Credentials, NewAccount, Renewed, SignedIn
from allim.domains.accounts.service import Service, Session
from allim.errors import Unauthenticated
from allim.http.bodies import read_model, utc
from allim.http.gate import Gate, clear_cookie, set_cookie, token_of
from allim.http.routing import route

_MAX_BODY_BYTES = 16 * 1024
_ME = "/api/accounts/me"


def routes(service: Service, gate: Gate, session_lifetime_s: int) -> list[Route]:
    """`/api/accounts`, `/api/accounts/me`, `/api/session` and `/api/session/renew`."""

    async def register(request: Request) -> Response:
        await gate.stop_guessing(request)
        session = await service.register(await read_model(request, NewAccount, _MAX_BODY_BYTES))
        return signed_in(request, session, 201, {"Location": _ME})

    async def me(request: Request) -> Response:
        identity = await gate.identify(request)
        account = await service.account(identity.subject)
        return JSONResponse(account.model_dump(), headers={"Cache-Control": "no-store"})

    async def sign_in(request: Request) -> Response:
        credentials = await read_model(request, Credentials, _MAX_BODY_BYTES)
        await gate.stop_guessing(request, credentials.email)
        session = await service.sign_in(credentials.email, credentials.password)
        return signed_in(request, session, 200)

    async def sign_out(request: Request) -> Response:
        # Whoever is not signed in (any more) is signed out: the wish is fulfilled, the cookie goes.
        try:
            identity = await gate.identify(request)
        except Unauthenticated:
            pass
        else:
            await service.sign_out(identity)
        response = Response(status_code=204)
        clear_cookie(request, response)
        return response

    async def renew(request: Request) -> Response:
        await gate.identify(request)
        renewal = await service.renew(token_of(request))
        view = Renewed.model_construct(token=renewal.token, expires_at=utc(renewal.expires_at))
        response = JSONResponse(view.model_dump(), 200, {"Cache-Control": "no-store"})
        set_cookie(request, response, renewal.token, session_lifetime_s)
        return response

    def signed_in(request: Request, session: Session, status: int, headers: dict[str, str] | None = None) -> Response:
        content = SignedIn.model_construct(account=session.account, token=session.token)
        headers = {"Cache-Control": "no-store", **(headers or {})}
        response = JSONResponse(content.model_dump(), status, headers)
        set_cookie(request, response, session.token, session_lifetime_s)
        return response

    return [
        route("/api/accounts", post=register),
        route(_ME, get=me),
        route("/api/session", post=sign_in, delete=sign_out),
        route("/api/session/renew", post=renew),
    ]
