"""Sign-in over a provider, for browsers: two redirects and a cookie in between."""

from collections.abc import Sequence

import structlog
from starlette.requests import Request
from starlette.responses import JSONResponse, RedirectResponse, Response

from allim.domains.accounts.models import ProviderNames
from allim.domains.accounts.providers import FLOW_LIFETIME_S, Cancelled, Flow, Flows, Provider
from allim.domains.accounts.service import Service
from allim.errors import AllimError, Conflict, NotFound, TooMany, Unavailable
from allim.http.gate import Gate, set_cookie
from allim.http.routing import Answer, Parameter, Resource, operation, route

log = structlog.get_logger(__name__)

FLOW_COOKIE = "allim_sign_in"

_PATH = "/api/session/providers"
_NAME = Parameter("path", "name", str, "The provider.")
_OUTCOMES = {
    Cancelled: "cancelled",
    Conflict: "email_taken",
    TooMany: "unavailable",
    Unavailable: "unavailable",
}


def provider_routes(
    providers: Sequence[Provider],
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
        """List the providers to sign in over."""
        return JSONResponse(ProviderNames.model_construct(providers=list(by_name)).model_dump())

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
        _set_flow(request, response, flows.seal(flow), FLOW_LIFETIME_S)
        return response

    @operation(
        parameters=[_NAME],
        answers={303: Answer("To the page, signed in or told why not.", headers=["Location", "Set-Cookie"])},
        fails=[NotFound],
    )
    async def come_back(request: Request) -> Response:
        """Come back from a provider.

        Called by the provider's redirect, with what it puts into the query. `?sign_in=` tells the page what failed.
        """
        provider = named(request)
        home = request.scope.get("root_path", "") + "/"
        try:
            await gate.stop_guessing(request)
            person = await provider.person(begun(request, provider), request.query_params)
            session = await service.sign_in_as(person)
        except AllimError as error:
            outcome = _OUTCOMES.get(type(error), "failed")
            log.info("sign-in over a provider failed", provider=provider.name, outcome=outcome, reason=error.detail)
            response = RedirectResponse(f"{home}?sign_in={outcome}", 303)
        else:
            response = RedirectResponse(home, 303)
            set_cookie(request, response, session.token, session_lifetime_s)
        response.headers["Cache-Control"] = "no-store"
        _set_flow(request, response, "", 0)
        return response

    def named(request: Request) -> Provider:
        provider = by_name.get(request.path_params["name"])
        if provider is None:
            raise NotFound("There is no such provider.")
        return provider

    def callback_url(request: Request, provider: Provider) -> str:
        return f"{public_url}{request.scope.get('root_path', '')}{_PATH}/{provider.name}/callback"

    def begun(request: Request, provider: Provider) -> Flow:
        return flows.open(request.cookies.get(FLOW_COOKIE, ""), provider.name)

    return [
        route(_PATH, tag="Session", get=provider_names),
        route(_PATH + "/{name}", tag="Session", get=begin_provider),
        route(_PATH + "/{name}/callback", tag="Session", get=come_back),
    ]


def _set_flow(request: Request, response: Response, sealed: str, max_age_s: int) -> None:
    response.set_cookie(
        FLOW_COOKIE,
        sealed,
        max_age=max_age_s,
        path=request.scope.get("root_path", "") + _PATH,
        httponly=True,
        samesite="lax",  # the provider's redirect comes from another site
        secure=request.scope["scheme"] == "https",
    )
