"""A shop with its own users and its own session cookie. sidecar.py and mounted.py run it, with allim in two forms.

Only the shop signs its sessions. allim verifies them, and signs and renews none of them.
"""

import secrets
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Annotated, Any

from fastapi import Cookie, Depends, FastAPI, HTTPException, Response
from fastapi.responses import HTMLResponse
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import OctKey
from pydantic import BaseModel

from allim.client import user_topic

ISSUER, COOKIE, LIFETIME_S = "https://shop.example.org", "shop_session", 3600
KEY = OctKey.import_key(Path("shop.key").read_text().strip())
USERS = {"min@example.org": ("42", "a good password"), "jae@example.org": ("43", "another password")}
NEEDED = jwt.JWTClaimsRegistry(iss={"essential": True, "value": ISSUER}, exp={"essential": True})
PAGE = """<!doctype html><title>Shop</title>
<button id="sign-in">Sign in as Min</button> <button id="order">Order</button> <pre id="log"></pre>
<script>
  const at = (id) => document.getElementById(id), headers = {"content-type": "application/json"};
  const post = (path, body) => fetch(path, {method: "POST", headers, body: JSON.stringify(body)});
  const say = (event) => at("log").append(event.type + " " + event.data + "\\n");
  at("order").onclick = () => post("/orders");
  at("sign-in").onclick = async () => {
    await post("/sign-in", {email: "min@example.org", password: "a good password"});
    const events = new EventSource("/notify/events"); // it sends the shop's cookie
    for (const type of ["stream.open", "orders.placed"]) events.addEventListener(type, say);
  };
</script>"""

Publish = Callable[[str, str, object, str], Awaitable[object]]
"""Publishes an event: topic, type, data, and the key under which a repetition is the same event."""


class Credentials(BaseModel):
    email: str
    password: str


def issue(user: str) -> str:
    """Return a token of a session of this user."""
    claims = {"iss": ISSUER, "sub": user, "sid": secrets.token_hex(8), "exp": int(time.time()) + LIFETIME_S}
    return jwt.encode({"alg": "HS256"}, claims, KEY)


def claims_of(token: str | None) -> dict[str, Any] | None:
    """Return what a token of this shop says, None for any other token."""
    try:
        claims = jwt.decode(token or "", KEY, algorithms=["HS256"]).claims
        NEEDED.validate(claims)
    except (JoseError, ValueError):
        return None
    return claims


def signed_in(shop_session: Annotated[str | None, Cookie()] = None) -> str:
    """Return the user of a request."""
    claims = claims_of(shop_session)
    if claims is None:
        raise HTTPException(401, "Sign in first.")
    return str(claims["sub"])


def create_shop(publish: Publish, lifespan: Any = None) -> FastAPI:
    """Return the shop, which publishes each order to the user that placed it."""
    app = FastAPI(lifespan=lifespan)

    @app.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return PAGE

    @app.post("/sign-in")
    async def sign_in(credentials: Credentials, response: Response) -> None:
        user, password = USERS.get(credentials.email, ("", ""))
        if not user or not secrets.compare_digest(password.encode(), credentials.password.encode()):
            raise HTTPException(401, "Email or password is wrong.")
        response.set_cookie(COOKIE, issue(user), max_age=LIFETIME_S, httponly=True, samesite="lax")

    @app.post("/orders", status_code=201)
    async def order(user: Annotated[str, Depends(signed_in)]) -> dict[str, str]:
        order_id = secrets.token_hex(4)
        await publish(user_topic(user), "orders.placed", {"orderId": order_id}, f"order-{order_id}")
        return {"orderId": order_id}

    return app
