"""docs/scaling.md shows the output of `allim plan`."""

from bench.scaling_page import SCALING, filled


def test_the_page_shows_what_the_command_prints() -> None:
    page = SCALING.read_text("utf-8")

    assert filled(page) == page, "python -m bench.scaling_page"
    assert "allim plan --streams 1000000 --events-per-s 100000" in page
