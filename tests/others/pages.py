"""The pages docs/clients.md and docs/proxies.md, as tests read them: what they show is what is run."""

import re
from typing import NamedTuple

from harness.replicas import ROOT

_BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


class Block(NamedTuple):
    """A block of code, with the word that names its language."""

    language: str
    text: str


def text_of(page: str) -> str:
    return (ROOT / "docs" / page).read_text()


def blocks(page: str) -> dict[str, list[Block]]:
    """Return the blocks of code under each heading of the second level that has some, by the heading."""
    sections = re.split(r"^## ", text_of(page), flags=re.MULTILINE)[1:]
    found = {section.partition("\n")[0]: _BLOCK.findall(section) for section in sections}
    return {heading: [Block(*block) for block in found[heading]] for heading in found if found[heading]}


def table(page: str) -> list[list[str]]:
    """Return the cells of the page's first table, without its head."""
    lines = re.search(r"(?:^\|.*\n)+", text_of(page), re.MULTILINE)
    assert lines is not None
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[0].splitlines()[2:]]
