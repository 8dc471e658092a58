"""The walls between the rooms, as pyproject.toml draws them."""

import subprocess
import sys
from pathlib import Path


def test_no_room_reaches_through_a_wall() -> None:
    lint = Path(sys.executable).with_name("lint-imports")

    result = subprocess.run([lint, "--no-cache"], cwd=Path(__file__).parents[1], capture_output=True, text=True)

    assert result.returncode == 0, result.stdout
