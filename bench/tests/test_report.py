"""The table says what was measured, and says it where a peer is better."""

from pathlib import Path

import pytest

from bench.contender import Contender
from bench.report import BEGIN, END, Results, Row, document, table, where_peers_win, write


def contender(name: str) -> Contender:
    return Contender(name, lambda folder, url: pytest.fail("not started"), frozenset(), lambda: "version 1", "run")


OURS, PEER = contender("allim"), contender("peer")


def results(figure: str, ours: list[float], peer: list[float]) -> Results:
    made = Results()
    made.values[Row(figure, 1000), "allim"] = ours
    made.values[Row(figure, 1000), "peer"] = peer
    return made


@pytest.mark.parametrize(
    ("figure", "ours", "peer", "line"),
    [
        ("broadcast.cpu", 300_000.0, 100_000.0, "| 1,000 | 300,000 | 100,000 (3×) |"),
        ("broadcast.cpu", 50_000.0, 100_000.0, "| 1,000 | 50,000 | 100,000 (**0.5×**) |"),
        ("broadcast.cpu", 98.0, 100.0, "| 1,000 | 98.0 | 100 (0.98×) |"),
        ("idle.kib", 3.0, 60.0, "| 1,000 | 3.00 | 60.0 (20×) |"),
        ("idle.kib", 6.0, 3.0, "| 1,000 | 6.00 | 3.00 (**0.5×**) |"),
        ("broadcast.wall", 5.0, 3.0, "| 1,000 | 5.00 | 3.00 |"),
        ("idle.kib", 3.0, -1.0, "| 1,000 | 3.00 | -1.00 |"),
    ],
)
def test_a_cell_says_how_many_times_better_allim_is(figure: str, ours: float, peer: float, line: str) -> None:
    assert table(results(figure, [ours], [peer]), [OURS, PEER]).endswith(line)


def test_medians_are_shown() -> None:
    assert "| 2.00 | 20.0 |" in table(results("broadcast.wall", [1, 9, 2], [20, 30, 1]), [OURS, PEER])


def test_what_a_peer_cannot_do_is_said() -> None:
    made = results("batch.cpu", [5.0], [])
    made.cannot[Row("batch.cpu", 1000), "peer"] = "cannot"

    assert table(made, [OURS, PEER]).endswith("| 5.00 | cannot |")


def test_where_a_peer_is_better_is_said() -> None:
    made = results("broadcast.cpu", [50.0], [100.0])

    (line,) = where_peers_win(made, [OURS, PEER])

    assert line == "broadcast: deliveries per server CPU-second, 1,000 streams: peer is 2 times better"
    assert line in document({}, made, [OURS, PEER])


def test_what_went_wrong_is_said() -> None:
    made = results("broadcast.cpu", [50.0], [100.0])
    assert "No delivery was lost" in document({}, made, [OURS, PEER])

    made.problems.append("peer lost 3")
    assert "No delivery was lost" not in document({}, made, [OURS, PEER])
    assert "- peer lost 3" in document({}, made, [OURS, PEER])


def test_the_report_takes_its_place_in_the_page(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")

    write(r"new \1", page)

    assert page.read_text() == f"before\n{BEGIN}\n\nnew \\1\n\n{END}\nafter\n"


def test_a_page_without_a_place_is_refused(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("nothing\n")

    with pytest.raises(ValueError, match="has no"):
        write("new", page)
