"""The one chain of migrations that allim 0.1 had, and the move of its tables to the names that they have now.

Then all domains shared the table `alembic_version`, and tables were named `accounts` and `snapshots`, as an
application's own may be.
"""

from pathlib import Path

from sqlalchemy import Connection, inspect, text

from allim.storage.chain import Chain

MOVED = "moved to allim_*_version"  # an allim 0.1 that is started again refuses this schema, as one it does not know
_FORMER = Chain("former", Path(__file__).parent / "former_migrations", "alembic_version")
_VERSIONS = {"0001", "0002", "0003", "0004"}
_FIRST = {"accounts", "snapshots", "snapshot_counts"}  # the tables of version 0001
_PACKAGE = Path(__file__).parents[1]
_TABLES = {
    "accounts": {
        "accounts": "allim_accounts",
        "identities": "allim_accounts_identities",
        "sessions": "allim_accounts_sessions",
    },
    "keys": {"publish_keys": "allim_keys"},
    "snapshots": {"snapshots": "allim_snapshots", "snapshot_counts": "allim_snapshots_counts"},
}


def is_there(connection: Connection) -> bool:
    """Return whether the database has the tables of allim 0.1, not yet moved."""
    applied = _FORMER.applied(connection)
    return bool(applied) and applied <= _VERSIONS and set(inspect(connection).get_table_names()) >= _FIRST


def move(connection: Connection) -> None:
    """Rename the tables, those of domains that are left out as well, and note the first version of each domain.

    PostgreSQL renames them in place. SQLite cannot rename constraints, so there the rows are copied.
    """
    _FORMER.upgrade(connection)
    for domain, tables in _TABLES.items():
        chain = Chain(domain, _PACKAGE / "domains" / domain / "migrations")
        if connection.dialect.name == "postgresql":
            for old, new in tables.items():
                _rename(connection, old, new)
            chain.stamp(connection, "0001")
        else:
            chain.upgrade(connection, "0001")
            for old, new in tables.items():
                _copy(connection, old, new)
    connection.execute(text("UPDATE alembic_version SET version_num = :moved"), {"moved": MOVED})


def _rename(connection: Connection, old: str, new: str) -> None:
    """Rename a table with its indexes, and with them its constraints: `pk_<table>`, `ix_<table>_<columns>`."""
    connection.execute(text(f"ALTER TABLE {old} RENAME TO {new}"))
    indexes = text("SELECT indexname FROM pg_indexes WHERE schemaname = current_schema() AND tablename = :table")
    for name in list(connection.scalars(indexes, {"table": new})):
        connection.execute(text(f"ALTER INDEX {name} RENAME TO {name.replace(old, new, 1)}"))


def _copy(connection: Connection, old: str, new: str) -> None:
    columns = ", ".join(column["name"] for column in inspect(connection).get_columns(new))
    connection.execute(text(f"INSERT INTO {new} ({columns}) SELECT {columns} FROM {old}"))
    connection.execute(text(f"DROP TABLE {old}"))
