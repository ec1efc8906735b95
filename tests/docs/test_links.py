"""Links between the pages lead somewhere, and README stays short."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks.picture import PICTURE, RESULTS, draw, read_results
from tests.docs.pages import ROOT, anchors, links, pages

# Written by a hook of the site's builder.
GENERATED = {ROOT / "docs" / "reference" / "command_line.md"}


def problem(page: Path, link: str) -> str | None:
    """Why a link leads nowhere; links to other sites are not followed."""
    if "://" in link or link.startswith("mailto:"):
        return None
    path, _, anchor = link.partition("#")
    target = (page.parent / path).resolve() if path else page
    if target in GENERATED:
        return None
    if not target.exists():
        return f"{link}: no such file"
    if anchor and anchor not in anchors(target):
        return f"{link}: {target.name} has no such heading"
    return None


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert [found for link in links(page) if (found := problem(page, link)) is not None] == []


def test_broken_links_are_found() -> None:
    page = ROOT / "README.md"
    assert problem(page, "docs/no-such-page.md") == "docs/no-such-page.md: no such file"
    assert problem(page, "README.md#no-such-heading") is not None
    assert problem(page, "README.md#limits") is None


def test_readme_fits_on_a_few_screens() -> None:
    assert len((ROOT / "README.md").read_text().split()) < 1000


def test_picture_is_drawn_from_the_recorded_results() -> None:
    assert PICTURE.read_text() == draw(read_results(RESULTS))


def test_table_of_measured_times_is_the_recorded_one() -> None:
    lines = (ROOT / "docs" / "measured.md").read_text().splitlines()
    for row in read_results(RESULTS).rows:
        times = [row["ours"], *(row["peers"].get(peer) for peer in ("ONNX Runtime", "OpenVINO"))]
        line = next(each for each in lines if each.startswith(f"| {row['model']} |") and each.count("|") == 8)
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert [float(cell) if cell[0].isdigit() else None for cell in cells[1:4]] == times
        assert float(cells[4]) == row["ratio"]


def test_every_page_is_in_the_navigation_of_the_site() -> None:
    listed = set(re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text().partition("\nnav:")[2]))
    written = {str(page.relative_to(ROOT / "docs")) for page in pages() if page.is_relative_to(ROOT / "docs")}
    generated = {str(page.relative_to(ROOT / "docs")) for page in GENERATED}
    assert listed == written | generated
