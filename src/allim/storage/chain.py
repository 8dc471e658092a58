"""A chain of Alembic migrations with a table of its own that says how far it is applied."""

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection

from allim import __version__
from allim.errors import Unusable

_SCRIPTS = Path(__file__).parent / "migrations"


class Chain:
    """The migrations of one domain.

    Shape: `folder` holds the versions; `version_table` is `allim_<name>_version` by default.
    """

    def __init__(self, name: str, folder: Path, version_table: str = "") -> None:
        self.name = name
        self.version_table = version_table or f"allim_{name}_version"
        self._config = Config()
        # Alembic reads `%` as interpolation, and splits the locations at `:`.
        self._config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
        self._config.set_main_option("version_locations", str(folder).replace("%", "%%"))
        self._config.set_main_option("path_separator", "newline")

    def applied(self, connection: Connection) -> set[str]:
        """Return the last of the applied versions; empty when none is applied."""
        opts = {"version_table": self.version_table}
        return set(MigrationContext.configure(connection, opts=opts).get_current_heads())

    def is_newest(self, connection: Connection) -> bool:
        """Return whether all versions are applied.

        Raises: Unusable when one is applied that is not here.
        """
        applied = self.applied(connection)
        scripts = ScriptDirectory.from_config(self._config)
        if newer := sorted(applied - {script.revision for script in scripts.walk_revisions()}):
            raise Unusable(
                f"its schema {self.name} {', '.join(newer)} is not known to allim {__version__}: a newer version has "
                "migrated it",
                "run that version or a later one, or give this one a database of its own",
            )
        return applied == set(scripts.get_heads())

    def upgrade(self, connection: Connection, version: str = "heads") -> None:
        """Apply the versions that are missing, up to this one."""
        command.upgrade(self._connected(connection), version)

    def stamp(self, connection: Connection, version: str) -> None:
        """Note that the versions up to this one are applied."""
        command.stamp(self._connected(connection), version)

    def _connected(self, connection: Connection) -> Config:
        self._config.attributes.update(connection=connection, version_table=self.version_table)
        return self._config
