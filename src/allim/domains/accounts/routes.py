"""Accounts over HTTP."""

from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from allim.domains.accounts.models import AccountView, Credentials, NewAccount, Renewed, SignedIn, normal_email
from allim.domains.accounts.service import Service, Session
from allim.errors import Conflict, Invalid, NotFound, Unauthenticated
from allim.http.bodies import read_model, utc
from allim.http.gate import Gate, clear_cookie, set_cookie, token_of
from allim.http.routing import Answer, Caller, Resource, operation, route

_MAX_BODY_BYTES = 16 * 1024
_ME = "/api/accounts/me"


def routes(service: Service, gate: Gate, session_lifetime_s: int) -> list[Resource]:
    """`/api/accounts`, `/api/accounts/me`, `/api/session` and `/api/session/renew`."""

    @operation(
        body=NewAccount,
        answers={201: Answer("Created, and signed in.", SignedIn, ["Location", "Set-Cookie"])},
        fails=[Conflict],
    )
    async def register(request: Request) -> Response:
        """Create an account and sign in.

        Its first snapshot is requested in the same step.
        """
        await gate.stop_guessing(request)
        new = await read_model(request, NewAccount, _MAX_BODY_BYTES)
        await gate.count_new_account(request)
        session = await service.register(new, partial(gate.hashing, request))
        return signed_in(request, session, 201, {"Location": _ME})

    @operation(caller=Caller.USER, answers={200: Answer("The account.", AccountView)}, fails=[NotFound])
    async def me(request: Request) -> Response:
        """Show the signed-in account.

        404 when the token's subject has no account here.
        """
        identity = await gate.identify(request)
        account = await service.account(identity.subject)
        return JSONResponse(account.model_dump(), headers={"Cache-Control": "no-store"})

    @operation(
        body=Credentials,
        answers={200: Answer("Signed in.", SignedIn, ["Set-Cookie"])},
        fails=[Unauthenticated],
    )
    async def sign_in(request: Request) -> Response:
        """Sign in.

        401 in the same words, whatever was wrong.
        """
        credentials = await read_model(request, Credentials, _MAX_BODY_BYTES)
        await gate.stop_guessing(request, _account_tried(credentials.email))
        session = await service.sign_in(credentials.email, credentials.password, partial(gate.hashing, request))
        return signed_in(request, session, 200)

    @operation(caller=Caller.VISITOR, answers={204: Answer("Signed out.", headers=["Set-Cookie"])})
    async def sign_out(request: Request) -> Response:
        """Sign out.

        The cookie is cleared, and the session's streams end on every replica. 204 also for somebody who is not
        signed in.
        """
        # Whoever is not signed in is signed out: the wish is fulfilled, the cookie goes. One who was signed out
        # already is signed out again: the first time may have been cut off half-way.
        try:
            identity = await gate.recognise(request)
        except Unauthenticated:
            pass
        else:
            await service.sign_out(identity)
        response = Response(status_code=204)
        clear_cookie(request, response)
        return response

    @operation(
        caller=Caller.USER,
        answers={200: Answer("Renewed.", Renewed, ["Set-Cookie"])},
        fails=[Invalid],
    )
    async def renew(request: Request) -> Response:
        """Renew the session's token.

        The session's open streams live on with it. 422 for a token of another issuer.
        """
        renewal = await service.renew(token_of(request), partial(gate.identify, request))
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
        route("/api/accounts", tag="Accounts", post=register),
        route(_ME, tag="Accounts", get=me),
        route("/api/session", tag="Session", post=sign_in, delete=sign_out),
        route("/api/session/renew", tag="Session", post=renew),
    ]


def _account_tried(email: str) -> str:
    """The form under which the account would be found, however it was spelt; "" for none."""
    try:
        return normal_email(email)
    except ValueError:
        return ""
