"""allim and an application with its own Alembic and SQLAlchemy in one database, as docs/embedding.md describes it."""

import re
from pathlib import Path
from typing import Any

import httpx
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from harness.replicas import ROOT, SECRET
from sqlalchemy import Column, Connection, ForeignKey, Integer, MetaData, String, Table, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from allim.app import create_app
from allim.settings import load_settings

pytestmark = pytest.mark.anyio

METADATA = MetaData()  # the application's: one table is named as one of allim was, and its version as well
ACCOUNTS = Table("accounts", METADATA, Column("id", Integer, primary_key=True), Column("name", String(50)))
Table("orders", METADATA, Column("id", Integer, primary_key=True), Column("account", ForeignKey("accounts.id")))
ENV = """
from alembic import context
context.configure(connection=context.config.attributes["connection"], include_name=include_name)
with context.begin_transaction():
    context.run_migrations()
"""
VERSION = """
import sqlalchemy as sa
from alembic import op
revision, down_revision = "0001", None
def upgrade():
    op.create_table("accounts", sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(50)))
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("account", sa.Integer, sa.ForeignKey("accounts.id")),
    )
"""


def shown_filter() -> str:
    """Return the filter for an application's env.py that docs/embedding.md shows."""
    found = re.search(r"^def include_name\(.*?(?=^\S)", (ROOT / "docs" / "embedding.md").read_text(), re.M | re.S)
    assert found is not None
    return found[0].partition("```")[0]


async def migrate_application(engine: AsyncEngine, folder: Path) -> None:
    (folder / "versions").mkdir(parents=True)
    (folder / "env.py").write_text(shown_filter() + ENV)
    (folder / "versions" / "0001.py").write_text(VERSION)
    config = Config()
    config.set_main_option("script_location", str(folder))
    config.set_main_option("path_separator", "os")

    def upgrade(connection: Connection) -> None:
        config.attributes["connection"] = connection
        command.upgrade(config, "head")

    async with engine.begin() as connection:
        await connection.run_sync(upgrade)


async def use_allim(database_url: str, folder: Path) -> None:
    """Start allim, which migrates, and make an account."""
    environ = {"ALLIM_DATA_DIR": str(folder), "ALLIM_SECRET_KEY": SECRET, "ALLIM_DATABASE_URL": database_url}
    app = create_app(load_settings(environ))
    account = {"email": "min@example.org", "name": "Min", "password": "a good password"}
    client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
    async with app.router.lifespan_context(app), client:
        assert (await client.post("/api/accounts", json=account)).status_code == 201


@pytest.mark.parametrize("first", ["allim", "application"])
async def test_both_keep_their_own_tables_and_versions(database_url: str, tmp_path: Path, first: str) -> None:
    url = database_url.replace("sqlite:", "sqlite+aiosqlite:").replace("postgresql:", "postgresql+asyncpg:")
    (tmp_path / "data").mkdir()
    engine = create_async_engine(url)
    if first == "allim":
        await use_allim(database_url, tmp_path / "allim")
    await migrate_application(engine, tmp_path / "application")
    if first == "application":
        await use_allim(database_url, tmp_path / "allim")

    async with engine.begin() as connection:
        await connection.execute(ACCOUNTS.insert().values(id=1, name="Min"))
        assert await connection.scalar(text("SELECT version_num FROM alembic_version")) == "0001"
        assert await connection.scalar(text("SELECT count(*) FROM allim_accounts")) == 1
        names = await connection.run_sync(lambda sync: inspect(sync).get_table_names())
        found = await connection.run_sync(differences)
    await engine.dispose()
    own = {"accounts", "orders", "alembic_version"}
    assert {name for name in names if not name.startswith("allim_")} == own
    assert found == []


def differences(connection: Connection) -> list[Any]:
    """Return what the application's autogenerate would change."""
    names: dict[str, Any] = {}
    exec(shown_filter(), names)
    context = MigrationContext.configure(connection, opts={"include_name": names["include_name"]})
    return list(compare_metadata(context, METADATA))
