from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from compiler.reports.charts import (
    Bar,
    BarChart,
    Column,
    Graph,
    Histogram,
    LineChart,
    Mark,
    Node,
    Series,
    ShareStrip,
    Span,
    Table,
    Timeline,
    layered,
)
from compiler.reports.page import Fact, Page, Section, render
from tests.compiler.profiling.conftest import chromium

HOSTILE = "</script><script>alert(1)</script><b>&"

EVERYTHING = Page(
    title="All charts",
    subtitle=HOSTILE,
    facts=[Fact("fact", "1 ms", "note")],
    sections=[
        Section("bars", BarChart([Bar(HOSTILE, 2.0, "a"), Bar("zero", 0.0, "unknown", "text", ("detail",))], "s")),
        Section("no bars", BarChart([], "s")),
        Section("shares", ShareStrip({"a": 3.0, "b": 1.0}, "s"), narrow=True),
        Section("time", Timeline([Span("outer", "a", 0, 5e-3), Span(HOSTILE, "b", 1e-3, 2e-3, 1, ("x",))])),
        Section("lines", LineChart([Series("p", [(0, 0), (1, 2)]), Series("q", [(0, 1), (1, 1)])], steps=True)),
        Section(
            "logarithmic",
            LineChart(
                [Series("p", [(0.01, 1e6), (30.0, 2e9)]), Series("roof", [(0.01, 1e8), (40.0, 1e11)], line=True)],
                points=True,
                log=True,
                labels=["first", "second"],
            ),
        ),
        Section("one point", LineChart([Series("p", [(3, 4)])], marks=[Mark("here", 3)])),
        Section(
            "named points",
            LineChart(
                [Series("all", [(1, 2), (2, 2), (3, 1)]), Series("front", [(1, 2), (3, 1)], line=True)],
                points=True,
                y_from_zero=False,
                labels=["first", HOSTILE, "third"],
            ),
        ),
        Section(
            "one named point", LineChart([Series("all", [(1, 0)])], points=True, y_from_zero=False, labels=["first"])
        ),
        Section("kinds", BarChart([Bar("x", 1.0, "a"), Bar("y", 2.0, "b")])),
        Section("histogram", Histogram([1e-3, 1.1e-3, 5e-3], "s", "time", [Mark("p50", 1.1e-3)])),
        Section("one value", Histogram([1e-3], "s")),
        Section("graph", layered([Node(7, "from", "a", HOSTILE), Node(8, HOSTILE, "b")], [(7, 8)])),
        Section("no nodes", Graph([], [])),
        Section("area", LineChart([Series("p", [(0, 0), (1, 2)])], steps=True, area=True)),
        Section("table", Table([Column("n", "name"), Column("v", "value", "B", number=True)], [{"n": "x", "v": None}])),
        Section(
            "steps",
            Table(
                [Column("n", "name"), Column("v", "score", number=True)],
                [{"n": "one", "v": 0.9871}, {"n": "two", "v": 0.00034}],
            ),
        ),
    ],
    categories=("a", "b"),
)


def test_the_page_needs_nothing_else() -> None:
    page = render(EVERYTHING)
    links = re.findall(r"""(?:src|href|action)\s*=|@import|url\(|fetch\(|XMLHttpRequest|https?://[^\s"']+""", page)
    assert set(links) <= {"http://www.w3.org/2000/svg"}  # a namespace, not an address to load
    assert "default-src 'none'" in page


def test_no_text_becomes_markup() -> None:
    page = render(EVERYTHING)
    assert HOSTILE not in page
    assert page.count("</script>") == 2
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert data is not None
    charts = json.loads(data.group(1))["charts"]
    assert charts[0]["bars"][0]["label"] == HOSTILE
    assert [chart["kind"] for chart in charts].count("histogram") == 2


def test_nodes_lie_behind_what_they_have_edges_from() -> None:
    edges = [(0, 1), (0, 2), (1, 3), (2, 3), (0, 3), (3, 4)]
    graph = layered([Node(each, str(each)) for each in range(6)], edges)
    places = {node.id: (node.level, node.slot) for node in graph.nodes}
    assert all(places[source][0] < places[target][0] for source, target in edges)
    assert len(set(places.values())) == 6
    assert [places[each] for each in (0, 1, 3, 4)] == [(0, 0), (1, 0), (2, 0), (3, 0)]


def test_numbers_that_json_lacks_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        render(Page("t", "s", sections=[Section("x", BarChart([Bar("a", float("nan"))]))]))


@pytest.mark.skipif(chromium() is None, reason="no Chromium to run the page in")
def test_every_chart_draws_without_an_error(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(render(EVERYTHING))
    command = [str(chromium()), "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr"]
    command += ["--virtual-time-budget=2000", "--dump-dom", path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=True)
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert console == []
    drawn = re.findall(r'data-chart="(\d+)"[^>]*>(?=<)', done.stdout)
    filled = re.findall(r'data-chart="(\d+)"[^>]*><(svg|canvas|div)', done.stdout)
    assert len(drawn) == len(filled) == len(EVERYTHING.sections)
    assert "NaN" not in done.stdout
    assert re.findall(r"<td[^>]*>([^<]*)</td>", done.stdout)[-4:] == ["one", "0.9871", "two", "0.00034"]
