"""`allim serve` with one more route, which keeps the event loop from turning."""

import sys
import time

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from allim.app import create_app
from allim.server.replica import listen, serve
from allim.settings import load_settings
from allim.telemetry import configure_logging


async def block(request: Request) -> Response:
    time.sleep(float(request.query_params["seconds"]))
    return Response()


def main(host: str, port: str) -> None:
    settings = load_settings()
    configure_logging(settings.server_id)
    app = create_app(settings)
    app.router.routes.insert(0, Route("/block", block))
    serve(app, settings, listen(host, int(port)))


if __name__ == "__main__":
    main(sys.argv[2], sys.argv[4])
