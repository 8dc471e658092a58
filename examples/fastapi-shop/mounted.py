"""The shop with allim inside, under /notify: `python mounted.py`."""

from starlette.requests import HTTPConnection

import allim
from allim.app import create_app
from allim.identity import Identity
from allim.server import run
from shop import COOKIE, claims_of, create_shop


def authenticate(connection: HTTPConnection) -> Identity | None:
    """Return the shop's user, for allim."""
    claims = claims_of(connection.cookies.get(COOKIE))
    return Identity.of(str(claims["sub"]), session=claims["sid"], expires_at=claims["exp"]) if claims else None


async def publish(topic: str, type_: str, data: object, key: str) -> None:
    await allim.of(app).publish(topic, type_, data, key=key)


app = create_shop(publish)
allim.mount(app, "/notify", create_app(authenticate=authenticate))

if __name__ == "__main__":
    run(app, port=8080)
