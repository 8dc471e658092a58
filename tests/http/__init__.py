# ruff: noqa: A005 - mirrors src/allim/http; a package of `tests`, so it shadows nothing
