"""Sign-in over a provider, for browsers: two redirects and a cookie in between.

Each sign-in under way has a cookie of its own, so that several tabs can sign in at the same time.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import TYPE_CHECKING

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from allim.access.gate import Gate
from allim.domains.accounts.devices import device_of
from allim.domains.accounts.flows import FLOW_LIFETIME_S, Cancelled, Flows, Stale
from allim.domains.accounts.models import ProviderNames
from allim.domains.accounts.service import Service
from allim.errors import AllimError, Conflict, NotFound, RegistrationClosed, TooMany, Unavailable
from allim.http.routing import Answer, Parameter, Resource, operation, route

if TYPE_CHECKING:
    from allim.domains.accounts.providers import Provider

log = structlog.get_logger(__name__)

FLOW_COOKIE = "allim_sign_in_"  # followed by a digest of the flow's state
MAX_FLOWS = 5  # of one browser: each cookie takes about 600 of the bytes that a request's head may have

_PATH = "/api/session/providers"
_NAME = Parameter("path", "name", str, "The provider.")
_OUTCOMES = {
    Stale: "expired",
    Cancelled: "cancelled",
    Conflict: "email_taken",
    RegistrationClosed: "closed",
    TooMany: "unavailable",
    Unavailable: "unavailable",
}


def provider_routes(
    providers: "Sequence[Provider]",
    flows: Flows,
    service: Service,
    gate: Gate,
    session_lifetime_s: int,
    public_url: str,
) -> list[Resource]:
    """`/api/session/providers`, and for each of them where a sign-in begins and where it comes back.

    Shape: `public_url` is the origin under which browsers know this service.
    """
    by_name = {provider.name: provider for provider in providers}

    @operation(answers={200: Answer("Their names.", ProviderNames)})
    async def provider_names(_: Request) -> Response:
        """List the providers to sign in over, and whether accounts can be made."""
        names = ProviderNames.model_construct(providers=list(by_name), registration=service.registration)
        return JSONResponse(names.model_dump())

    @operation(
        parameters=[_NAME],
        answers={302: Answer("To the provider.", headers=["Location", "Set-Cookie"])},
        fails=[NotFound],
    )
    async def begin_provider(request: Request) -> Response:
        """Begin to sign in over a provider, in a browser."""
        provider = named(request)
        await gate.stop_guessing(request)
        flow = flows.begin(provider.name, callback_url(request, provider))
        response = RedirectResponse(await provider.authorization_url(flow), 302, {"Cache-Control": "no-store"})
        others = {name: sealed for name, sealed in request.cookies.items() if name.startswith(FLOW_COOKIE)}
        for name in flows.superfluous(others, MAX_FLOWS - 1):
            _set_flow(request, response, name, "", 0)
        _set_flow(request, response, _cookie_of(flow.state), flows.seal(flow), FLOW_LIFETIME_S)
        return response

    @operation(
        parameters=[_NAME],
        answers={303: Answer("To the page, signed in or told why not.", headers=["Location", "Set-Cookie"])},
        fails=[NotFound],
    )
    async def come_back(request: Request) -> Response:
        """Come back from a provider.

        Called by the provider's redirect, with what it puts into the query. `?sign_in=` tells the page what failed.
        Other sign-ins of this browser, and its session, stay as they are.
        """
        provider = named(request)
        cookie = _cookie_of(request.query_params.get("state", ""))
        sealed = request.cookies.get(cookie, "")
        home = request.scope.get("root_path", "") + "/"
        try:
            await gate.stop_guessing(request)
            person = await provider.person(flows.open(sealed, provider.name), request.query_params)
            session = await service.sign_in_as(person, device_of(request))
        except AllimError as error:
            outcome = _OUTCOMES.get(type(error), "failed")
            log.info("sign-in over a provider failed", provider=provider.name, outcome=outcome, reason=error.detail)
            response = RedirectResponse(f"{home}?sign_in={outcome}", 303)
        else:
            response = RedirectResponse(home, 303)
            gate.set_cookie(request, response, session.token, session_lifetime_s)
        response.headers["Cache-Control"] = "no-store"
        if sealed:
            _set_flow(request, response, cookie, "", 0)
        return response

    def named(request: Request) -> "Provider":
        provider = by_name.get(request.path_params["name"])
        if provider is None:
            raise NotFound("There is no such provider.")
        return provider

    def callback_url(request: Request, provider: "Provider") -> str:
        return f"{public_url}{request.scope.get('root_path', '')}{_PATH}/{provider.name}/callback"

    return [
        route(_PATH, tag="Session", get=provider_names),
        route(_PATH + "/{name}", tag="Session", get=begin_provider),
        route(_PATH + "/{name}/callback", tag="Session", get=come_back),
    ]


def _cookie_of(state: str) -> str:
    """Return the name of the flow's cookie. It does not tell the state, which is a secret of the flow."""
    return FLOW_COOKIE + sha256(state.encode(errors="surrogatepass")).hexdigest()[:16]


def _set_flow(request: Request, response: Response, cookie: str, sealed: str, max_age_s: int) -> None:
    response.set_cookie(
        cookie,
        sealed,
        max_age=max_age_s,
        path=request.scope.get("root_path", "") + _PATH,
        httponly=True,
        samesite="lax",  # the provider's redirect comes from another site
        secure=request.scope["scheme"] == "https",
    )
