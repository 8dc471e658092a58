"""What was measured, as a Markdown table: absolute figures, and how allim compares in the same run."""

import re
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from bench.contender import Contender
from bench.scenarios import FIGURES, Figure

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
NEAR = 0.03  # closer than that is no difference


class Row(NamedTuple):
    figure: str
    streams: int

    @property
    def kind(self) -> Figure:
        return FIGURES[self.figure]


@dataclass
class Results:
    """Every value of every run. `cannot` says why one is missing; `problems` are deliveries that went wrong."""

    values: dict[tuple[Row, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    cannot: dict[tuple[Row, str], str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def median(self, row: Row, name: str) -> float | None:
        values = self.values.get((row, name))
        return statistics.median(values) if values else None

    @property
    def rows(self) -> list[Row]:
        known = {row for row, _ in self.values}
        return sorted(known, key=lambda row: (list(FIGURES).index(row.figure), row.streams))


def table(results: Results, contenders: Sequence[Contender]) -> str:
    """One row per figure, one column per contender: the median, and for a peer how many times better allim is."""
    ours, *peers = [contender.name for contender in contenders]
    lines = [
        f"| figure | streams | {' | '.join([ours, *peers])} |",
        f"|---|--:|{'--:|' * (1 + len(peers))}",
    ]
    for row in results.rows:
        own = results.median(row, ours)
        cells = [_number(own), *(_cell(results, row, own, peer) for peer in peers)]
        unit = f", {row.kind.unit}" if row.kind.unit else ""
        lines.append(f"| {row.kind.name}{unit} | {row.streams:,} | {' | '.join(cells)} |")
    return "\n".join(lines)


def where_peers_win(results: Results, contenders: Sequence[Contender]) -> list[str]:
    """A line for every figure in which a peer is better."""
    ours, *peers = [contender.name for contender in contenders]
    lines = []
    for row in results.rows:
        for peer in peers:
            ratio = _ratio(row, results.median(row, ours), results.median(row, peer))
            if ratio is not None and ratio < 1 - NEAR:
                lines.append(f"{row.kind.name}, {row.streams:,} streams: {peer} is {1 / ratio:.3g} times better")
    return lines


def spread(results: Results, contenders: Sequence[Contender]) -> str:
    """How far the runs lie apart: the widest of each contender's figures."""
    parts = []
    for contender in contenders:
        widths = {
            row: (max(values) - min(values)) / statistics.median(values)
            for row in results.rows
            if row.kind.more is True and len(values := results.values.get((row, contender.name), [])) > 1
        }
        if widths:
            row = max(widths, key=lambda one: widths[one])
            parts.append(f"{contender.name} {widths[row]:.0%} ({row.figure}, {row.streams:,})")
    return ", ".join(parts)


def document(facts: Mapping[str, str], results: Results, contenders: Sequence[Contender]) -> str:
    """The whole report."""
    parts = ["\n".join(f"- {name}: {fact}" for name, fact in facts.items())]
    parts.append("\n".join(f"- {one.name}: {one.versions()}; started by `{one.command}`" for one in contenders))
    parts.append(table(results, contenders))
    wins = where_peers_win(results, contenders)
    parts.append("Where a peer is better:\n\n" + "\n".join(f"- {line}" for line in wins) if wins else "")
    if apart := spread(results, contenders):
        parts.append(f"Between the runs, the widest spread of each in figures per CPU-second: {apart}.")
    parts.append(
        "Deliveries that went wrong:\n\n" + "\n".join(f"- {line}" for line in results.problems)
        if results.problems
        else "No delivery was lost, doubled or given to the wrong stream."
    )
    return "\n\n".join(part for part in parts if part)


def write(report: str, page: Path) -> None:
    """Put the report between the page's marks.

    Raises: ValueError when the page has none.
    """
    text = page.read_text("utf-8")
    pattern = re.compile(f"{re.escape(BEGIN)}.*{re.escape(END)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"{page} has no {BEGIN} … {END}")
    page.write_text(pattern.sub(lambda _: f"{BEGIN}\n\n{report}\n\n{END}", text), "utf-8")


def _cell(results: Results, row: Row, own: float | None, peer: str) -> str:
    value = results.median(row, peer)
    if value is None:
        return results.cannot.get((row, peer), "–")
    ratio = _ratio(row, own, value)
    if ratio is None:
        return _number(value)
    shown = f"{ratio:.3g}×" if ratio < 10 else f"{ratio:.0f}×"
    return f"{_number(value)} ({shown if ratio >= 1 - NEAR else f'**{shown}**'})"


def _ratio(row: Row, own: float | None, peer: float | None) -> float | None:
    """How many times better the own value is; None where nothing is better or worse, or nothing can be divided."""
    if row.kind.more is None or own is None or peer is None or own <= 0 or peer <= 0:
        return None
    return own / peer if row.kind.more else peer / own


def _number(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
