from pathlib import Path

import pytest

from allim.domains.page import routes as page
from allim.http.origins import PAGE_POLICY
from tests.http.apps import assert_problem, client_of

pytestmark = pytest.mark.anyio


async def test_without_a_built_page_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page, "FOLDER", None)
    async with client_of(page.routes()) as client:
        assert_problem(await client.get("/api/docs"), 404, "not_found")
        assert (await client.get("/")).status_code == 404


async def test_the_page_is_served_with_its_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("docs.html", "index.html"):
        (tmp_path / name).write_text("<!doctype html>")
    (tmp_path / "assets").mkdir()
    monkeypatch.setattr(page, "FOLDER", tmp_path)
    async with client_of(page.routes()) as client:
        answers = [await client.get(path) for path in ("/", "/api/docs")]

    for answer in answers:
        assert answer.status_code == 200
        assert answer.headers["content-security-policy"] == PAGE_POLICY
