"""A chain of Alembic migrations with a table of its own that says how far it is applied."""

import ast
from pathlib import Path
from typing import TYPE_CHECKING

from sqlalchemy import Connection, column, inspect, select, table

if TYPE_CHECKING:  # late: a start on the newest schema needs neither
    from alembic.config import Config

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
        self._folder = folder

    def applied(self, connection: Connection) -> set[str]:
        """Return the last of the applied versions; empty when none is applied."""
        if not inspect(connection).has_table(self.version_table):
            return set()
        return set(connection.scalars(select(column("version_num")).select_from(table(self.version_table))))

    def is_newest(self, connection: Connection) -> bool:
        """Return whether all versions are applied.

        Raises: Unusable when one is applied that is not here.
        """
        applied = self.applied(connection)
        if applied and applied == _last_versions(self._folder):
            return True
        from alembic.script import ScriptDirectory

        scripts = ScriptDirectory.from_config(self._config())
        if newer := sorted(applied - {script.revision for script in scripts.walk_revisions()}):
            raise Unusable(
                f"its schema {self.name} {', '.join(newer)} is not known to allim {__version__}: a newer version has "
                "migrated it",
                "run that version or a later one, or give this one a database of its own",
            )
        return applied == set(scripts.get_heads())

    def upgrade(self, connection: Connection, version: str = "heads") -> None:
        """Apply the versions that are missing, up to this one."""
        from alembic import command

        command.upgrade(self._config(connection), version)

    def stamp(self, connection: Connection, version: str) -> None:
        """Note that the versions up to this one are applied."""
        from alembic import command

        command.stamp(self._config(connection), version)

    def _config(self, connection: Connection | None = None) -> "Config":
        from alembic.config import Config

        config = Config()
        # Alembic reads `%` as interpolation, and splits the locations at `:`.
        config.set_main_option("script_location", str(_SCRIPTS).replace("%", "%%"))
        config.set_main_option("version_locations", str(self._folder).replace("%", "%%"))
        config.set_main_option("path_separator", "newline")
        config.attributes.update(connection=connection, version_table=self.version_table)
        return config


def _last_versions(folder: Path) -> set[str]:
    """Return the versions that no other one follows, read from the files without running them.

    Empty if a file says `revision` or `down_revision` otherwise than as text: then Alembic has to look.
    """
    versions: set[str] = set()
    followed: set[str] = set()
    for path in folder.glob("*.py"):
        names = _assigned(ast.parse(path.read_bytes()))
        version, former = names.get("revision"), names.get("down_revision")
        if not isinstance(version, str) or not isinstance(former, str | None):
            return set()
        versions.add(version)
        followed.add(former or "")
    return versions - followed


def _assigned(module: ast.Module) -> dict[str, object]:
    """Return the names that are assigned constants at the top of a module."""
    found: dict[str, object] = {}
    for node in module.body:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Constant):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            found |= {target.id: node.value.value for target in targets if isinstance(target, ast.Name)}
    return found
