"""docs/architecture.md answers "Where is …?" with files: they exist."""

import re

import pytest
from harness.replicas import ROOT

PAGE = (ROOT / "docs" / "architecture.md").read_text("utf-8")
SECTION = PAGE.split("Where is …?", 1)[1].split("\n## ", 1)[0]
ROWS = [line for line in SECTION.splitlines() if line.startswith("| ") and "?" in line]
FOLDERS = (ROOT / "src" / "allim", ROOT)


def test_there_are_twenty_questions_or_more() -> None:
    assert len(ROWS) >= 20


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.split("|")[1].strip())
def test_an_answer_names_files_that_exist(row: str) -> None:
    named = [path for path in re.findall(r"`([\w./<>-]+)`", row) if re.search(r"\w/|\.py$|\.lua$", path)]
    patterns = [re.sub(r"<\w+>", "*", path) for path in named]

    assert named
    assert [path for path in patterns if not any(any(folder.glob(path.strip("/"))) for folder in FOLDERS)] == []
