"""The built page. Its paths are named one by one, so that every other unknown path is a plain 404."""

import os
from pathlib import Path

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import Receive, Scope, Send

from allim.errors import NotFound
from allim.exchange import exchange_of
from allim.http.origins import PAGE_POLICY
from allim.http.routing import Answer, Resource, operation, route

_PACKAGE = Path(__file__).parents[2]
_BUILT = (_PACKAGE / "web", _PACKAGE.parents[1] / "web" / "dist")  # in a wheel, and in the repository
FOLDER = next((folder for folder in _BUILT if (folder / "index.html").is_file()), None)

_HEADERS = {"Cache-Control": "no-cache", "Content-Security-Policy": PAGE_POLICY}
_HTML = {200: Answer("A page that needs nothing from elsewhere.", str, media_type="text/html")}


def routes() -> list[BaseRoute]:
    """`/api/docs` and `/api/catalogue`; and `/`, `/favicon.svg` and `/assets`, if the page was built."""
    return [*_descriptions(), *(_page(FOLDER) if FOLDER else [])]


def _descriptions() -> list[Resource]:
    @operation(answers=_HTML, fails=[NotFound])
    async def docs(_: Request) -> Response:
        """Show the description, to be read and tried out.

        404 when the page was not built.
        """
        return _built("docs.html", "/api/openapi.json")

    @operation(answers=_HTML, fails=[NotFound])
    async def event_page(_: Request) -> Response:
        """Show the declared types of events.

        404 when the page was not built.
        """
        return _built("catalogue.html", "/api/catalogue.json")

    return [
        route("/api/docs", tag="Description", get=docs),
        route("/api/catalogue", tag="Description", get=event_page),
    ]


def _built(name: str, document: str) -> Response:
    """Return a file of the built page; `document` is the path of the description that it shows.

    Raises: NotFound.
    """
    if FOLDER is None or not (FOLDER / name).is_file():
        raise NotFound(f"The page was not built here; the description is at {document}.")
    return FileResponse(FOLDER / name, headers=_HEADERS)


def _page(folder: Path) -> list[BaseRoute]:
    async def index(_: Request) -> Response:
        return FileResponse(folder / "index.html", headers=_HEADERS)

    async def favicon(_: Request) -> Response:
        return FileResponse(folder / "favicon.svg", headers={"cache-control": "no-cache"})

    return [
        Route("/", index),
        Route("/favicon.svg", favicon),
        Mount("/assets", _Assets(directory=folder / "assets")),
    ]


class _Assets(StaticFiles):
    """Built files whose names hold a hash of their content: a name never stands for other content.

    A replica with another build answers 404, and no cache may keep that: nginx then asks another replica.
    """

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange_of(scope).extra_headers["cache-control"] = "no-store"
        await super().__call__(scope, receive, send)

    def file_response(
        self, full_path: str | os.PathLike[str], stat_result: os.stat_result, scope: Scope, status_code: int = 200
    ) -> Response:
        response = super().file_response(full_path, stat_result, scope, status_code)
        response.headers["cache-control"] = "public, max-age=31536000, immutable"
        return response
