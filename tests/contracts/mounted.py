"""allim inside another application, as docs/embedding.md describes it."""

from starlette.applications import Starlette

import allim
from allim.app import create_app


def create() -> Starlette:
    parent = Starlette()
    allim.mount(parent, "/notify", create_app())
    return parent
