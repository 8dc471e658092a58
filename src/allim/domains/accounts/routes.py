"""Accounts over HTTP."""

from functools import partial

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from allim.access.gate import Gate
from allim.access.rates import Policy
from allim.access.tokens import Tokens
from allim.domains.accounts.devices import device_of
from allim.domains.accounts.models import (
    AccountView,
    Credentials,
    Deletion,
    NewAccount,
    NewPassword,
    Renewed,
    SessionLife,
    SessionList,
    SignedIn,
    normal_email,
    session_view,
)
from allim.domains.accounts.service import Service, Session
from allim.errors import Conflict, Forbidden, Invalid, NotFound, Unauthenticated
from allim.http.bodies import parse, read_json_or_nothing, read_model
from allim.http.routing import Answer, Caller, Parameter, Resource, operation, route
from allim.identity import ALLIM, Identity
from allim.times import utc

_MAX_BODY_BYTES = 16 * 1024
_ME = "/api/accounts/me"
_ID = Parameter("path", "id", str, "The session's `id`.")


def routes(service: Service, gate: Gate, tokens: Tokens, new_accounts: Policy) -> list[Resource]:
    """`/api/accounts`, `/api/accounts/me` and the paths below it, `/api/session` and `/api/session/renew`.

    Shape: `new_accounts` limits the accounts that an address makes.
    """

    @operation(
        body=NewAccount,
        answers={201: Answer("Created, and signed in.", SignedIn, ["Location", "Set-Cookie"])},
        fails=[Conflict],
    )
    async def register(request: Request) -> Response:
        """Create an account and sign in.

        Its first snapshot is requested in the same step. 403 where registration is closed.
        """
        service.check_registration()
        await gate.stop_guessing(request)
        new = await read_model(request, NewAccount, _MAX_BODY_BYTES)
        await gate.limit_address(request, new_accounts)  # each leaves rows, events and keys behind
        session = await service.register(new, partial(gate.hashing, request), device_of(request))
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
        caller=Caller.USER,
        body=NewPassword,
        answers={204: Answer("Changed.")},
        fails=[NotFound, Conflict, Forbidden],
    )
    async def change_password(request: Request) -> Response:
        """Change the password.

        Every other session of the account ends. 403 for a wrong current password; 409 for an account that signs in
        over a provider: it has none.
        """
        identity = await gate.identify(request)
        body = await read_model(request, NewPassword, _MAX_BODY_BYTES)
        await stop_guessing_own(request, identity)
        await service.change_password(
            identity, body.current_password, body.new_password, partial(gate.hashing, request)
        )
        return Response(status_code=204)

    @operation(
        caller=Caller.USER,
        body=Deletion | None,
        answers={204: Answer("Deleted.", headers=["Set-Cookie"])},
        fails=[NotFound, Forbidden],
    )
    async def delete_account(request: Request) -> Response:
        """Delete the account.

        With its snapshots and publish keys; all of its sessions end. 403 for a wrong password, and for an account
        without one whose session is older than ten minutes: sign in again over the provider.
        """
        identity = await gate.identify(request)
        body = parse(Deletion, await read_json_or_nothing(request, _MAX_BODY_BYTES))
        await stop_guessing_own(request, identity)
        await service.delete(identity, body.password, partial(gate.hashing, request))
        response = Response(status_code=204)
        gate.clear_cookie(request, response)
        return response

    @operation(caller=Caller.USER, answers={200: Answer("The sessions.", SessionList)})
    async def sessions(request: Request) -> Response:
        """List the account's sessions."""
        identity = await gate.identify(request)
        rows = await service.sessions(identity.subject)
        listed = SessionList.model_construct(items=[session_view(row, identity.session) for row in rows])
        return JSONResponse(listed.model_dump(), headers={"Cache-Control": "no-store"})

    @operation(
        caller=Caller.USER,
        parameters=[_ID],
        answers={204: Answer("Ended.", headers=["Set-Cookie"])},
        fails=[NotFound],
    )
    async def end_session(request: Request) -> Response:
        """End one of the account's sessions.

        Its streams end on every replica. The cookie is cleared if it is the session that asks.
        """
        identity = await gate.identify(request)
        session_id = request.path_params["id"]
        await service.end_session(identity.subject, session_id)
        response = Response(status_code=204)
        if session_id == identity.session:
            gate.clear_cookie(request, response)
        return response

    @operation(caller=Caller.USER, answers={200: Answer("The session.", SessionLife)})
    async def session(request: Request) -> Response:
        """Show whose session it is, and whether it should be renewed.

        For pages, when they are opened or seen again. The session is noted as seen.
        """
        identity = await gate.identify(request)
        await service.seen(identity, device_of(request))
        life = tokens.life(gate.token_in(request), identity)
        shown = SessionLife.model_construct(
            user=identity.subject,
            expires_in_s=round(life.expires_in_s, 3),
            lifetime_s=round(life.lifetime_s, 3),
            renewal_due=life.renewal_due,
        )
        return JSONResponse(shown.model_dump(), headers={"Cache-Control": "no-store"})

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
        turn, device = partial(gate.hashing, request), device_of(request)
        session = await service.sign_in(credentials.email, credentials.password, turn, device)
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
        gate.clear_cookie(request, response)
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
        renewal = await service.renew(gate.token_of(request), partial(check_own, request), device_of(request))
        view = Renewed.model_construct(token=renewal.token, expires_at=utc(renewal.expires_at))
        response = JSONResponse(view.model_dump(), 200, {"Cache-Control": "no-store"})
        gate.set_cookie(request, response, renewal.token, tokens.lifetime_s)
        return response

    async def check_own(request: Request) -> None:
        """Check the session of a token that was issued here."""
        identity = await gate.identify(request)
        if identity.issuer != ALLIM:  # the application vouches for the caller, and the token does not count
            raise Invalid.field("token", "was not issued here; get a new one from its issuer")

    async def stop_guessing_own(request: Request, identity: Identity) -> None:
        """Count a password that is sent with a session like one that is sent to sign in."""
        account = await service.account(identity.subject)
        await gate.stop_guessing(request, account.email or "")

    def signed_in(request: Request, session: Session, status: int, headers: dict[str, str] | None = None) -> Response:
        content = SignedIn.model_construct(account=session.account, token=session.token)
        headers = {"Cache-Control": "no-store", **(headers or {})}
        response = JSONResponse(content.model_dump(), status, headers)
        gate.set_cookie(request, response, session.token, tokens.lifetime_s)
        return response

    return [
        route("/api/accounts", tag="Accounts", post=register),
        route(_ME, tag="Accounts", get=me),
        route(_ME + "/password", tag="Accounts", post=change_password),
        route(_ME + "/deletion", tag="Accounts", post=delete_account),
        route(_ME + "/sessions", tag="Accounts", get=sessions),
        route(_ME + "/sessions/{id}", tag="Accounts", delete=end_session),
        route("/api/session", tag="Session", get=session, post=sign_in, delete=sign_out),
        route("/api/session/renew", tag="Session", post=renew),
    ]


def _account_tried(email: str) -> str:
    """The form under which the account would be found, however it was spelt; "" for none."""
    try:
        return normal_email(email)
    except ValueError:
        return ""
