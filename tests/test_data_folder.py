"""The data folder is for the user that runs allim, and nobody else."""

import stat
from pathlib import Path

import pytest
from harness.replicas import replica

from allim import data_folder

MADE = ("secret_key", "allim.db", "allim.db-wal", "lock")


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_a_replica_makes_is_for_its_user_alone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    with replica(folder=tmp_path, secret_key=""):
        modes = {path.name: mode(path) for path in data.iterdir()}

    assert mode(data) == 0o700
    assert modes.keys() >= {"secret_key", "allim.db", "lock"}
    assert {name: oct(found) for name, found in modes.items() if found & 0o077} == {}


def test_a_folder_of_an_earlier_version_is_tightened(tmp_path: Path) -> None:
    for name in MADE:
        (tmp_path / name).touch()
    tmp_path.chmod(0o755)

    assert data_folder.tighten(tmp_path) is None
    assert mode(tmp_path) == 0o700


def test_a_folder_with_other_files_is_left_as_it_is_and_named(tmp_path: Path) -> None:
    for name in (*MADE, "holiday.jpg"):
        (tmp_path / name).touch()
    tmp_path.chmod(0o755)

    warning = data_folder.tighten(tmp_path)

    assert warning == (
        f"{tmp_path} is open to other users (mode 755) and holds other files too: chmod 700 {tmp_path}"
    )
    assert mode(tmp_path) == 0o755


@pytest.mark.parametrize("open_to", [0o700, 0o500])
def test_a_private_folder_is_nothing_to_speak_of(tmp_path: Path, open_to: int) -> None:
    folder = tmp_path / "data"
    assert data_folder.tighten(folder) is None

    data_folder.make(folder)
    folder.chmod(open_to)

    assert data_folder.tighten(folder) is None
    assert mode(folder) == open_to
    folder.chmod(0o700)


def test_a_replica_says_that_its_folder_is_open(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(0o755)
    (tmp_path / "data" / "holiday.jpg").touch()
    with replica(folder=tmp_path) as running:
        log = running.log.read_text()

    assert log.count('"event": "data folder is open to others"') == 1
