"""Writes into docs/scaling.md what `allim plan` prints, and the measured figures; between their markers.

python -m bench.scaling_page
"""

import re
import shlex
from pathlib import Path

from click.testing import CliRunner

from allim.cli import main
from allim.plan import figures

SCALING = Path(__file__).parents[1] / "docs" / "scaling.md"


def filled(page: str) -> str:
    """The page with every block made anew.

    Shape: a block is `<!-- plan: <options> -->` or `<!-- figures -->`, what is written, `<!-- end -->`.
    """
    return re.sub(r"<!-- (plan|figures)(?:: (.*?))? -->\n.*?<!-- end -->", _block, page, flags=re.DOTALL)


def _block(found: re.Match[str]) -> str:
    kind, options = found.groups()
    marker = found[0].partition("\n")[0]
    return f"{marker}\n{_table() if kind == 'figures' else _printed(options)}<!-- end -->"


def _printed(options: str) -> str:
    command = f"plan {options}"
    output = CliRunner().invoke(main, shlex.split(command), catch_exceptions=False).output
    return f"```\n$ allim {command}\n{output}```\n"


def _table() -> str:
    rows = (f"| `{name}` | {value:,} | {unit} | {source} |\n" for name, value, unit, source in figures())
    return "| figure | value | unit | measured for |\n|---|---|---|---|\n" + "".join(rows)


if __name__ == "__main__":
    SCALING.write_text(filled(SCALING.read_text("utf-8")), "utf-8")
