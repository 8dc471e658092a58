"""Accounts over HTTP."""

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from allim.domains.accounts.models import Credentials, NewAccount, SignedIn
from allim.domains.accounts.service import Service, Session
from allim.errors import Unauthenticated
from allim.http.auth import Tokens
from allim.http.bodies import read_model
from allim.http.routing import route

_MAX_BODY_BYTES = 16 * 1024
_ME = "/api/accounts/me"


def routes(service: Service, tokens: Tokens) -> list[Route]:
    """`/api/accounts`, `/api/accounts/me` and `/api/session`."""

    async def register(request: Request) -> Response:
        session = await service.register(await read_model(request, NewAccount, _MAX_BODY_BYTES))
        return signed_in(request, session, 201, {"Location": _ME})

    async def me(request: Request) -> Response:
        identity = tokens.identify(request)
        account = await service.account(identity.subject)
        return JSONResponse(account.model_dump(), headers={"Cache-Control": "no-store"})

    async def sign_in(request: Request) -> Response:
        credentials = await read_model(request, Credentials, _MAX_BODY_BYTES)
        session = await service.sign_in(credentials.email, credentials.password)
        return signed_in(request, session, 200)

    async def sign_out(request: Request) -> Response:
        # Whoever is not signed in (any more) is signed out: the wish is fulfilled, the cookie goes.
        try:
            identity = tokens.identify(request)
        except Unauthenticated:
            pass
        else:
            await service.sign_out(identity)
        response = Response(status_code=204)
        tokens.clear_cookie(request, response)
        return response

    def signed_in(request: Request, session: Session, status: int, headers: dict[str, str] | None = None) -> Response:
        content = SignedIn.model_construct(account=session.account, token=session.token)
        headers = {"Cache-Control": "no-store", **(headers or {})}
        response = JSONResponse(content.model_dump(), status, headers)
        tokens.set_cookie(request, response, session.token)
        return response

    return [
        route("/api/accounts", post=register),
        route(_ME, get=me),
        route("/api/session", post=sign_in, delete=sign_out),
    ]
