"""One self-contained page: facts at the top, and sections with a chart each. Nothing is loaded over a network."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from compiler.reports.charts import Chart

_SCRIPTS = ("core.js", "bars.js", "lines.js", "timeline.js", "graph.js", "table.js", "main.js")
# The page can make no requests, whatever text it contains.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'"


@dataclass(frozen=True)
class Fact:
    """A number at the top of a page."""

    label: str
    value: str
    note: str = ""


@dataclass(frozen=True)
class Section:
    """A chart with a heading; `note` explains it in a sentence. Two narrow sections share a row."""

    title: str
    chart: Chart
    note: str = ""
    narrow: bool = False


@dataclass(frozen=True)
class Page:
    """A report.

    Attributes:
        categories: names that determine chart colors, in the order of the palette; the last one may be "runtime", in
        grey.
    """

    title: str
    subtitle: str
    facts: Sequence[Fact] = ()
    sections: Sequence[Section] = ()
    categories: Sequence[str] = ()


def render(page: Page) -> str:
    """The page as HTML text."""
    style = _asset("style.css")
    scripts = "\n".join(_asset(name) for name in _SCRIPTS)
    data = json.dumps(
        {"categories": list(page.categories), "charts": [section.chart.spec() for section in page.sections]},
        allow_nan=False,
    ).replace("<", "\\u003c")  # no text can close the script element
    facts = "".join(_fact(fact) for fact in page.facts)
    sections = "".join(_section(index, section) for index, section in enumerate(page.sections))
    title = html.escape(page.title)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p class="subtitle">{html.escape(page.subtitle)}</p>
<dl class="facts">{facts}</dl>
</header>
<main>
{sections}</main>
<div id="tooltip" role="status" hidden></div>
<script type="application/json" id="data">{data}</script>
<script>
{scripts}</script>
</body>
</html>
"""


def _fact(fact: Fact) -> str:
    note = f'<dd class="note">{html.escape(fact.note)}</dd>' if fact.note else ""
    return f'<div><dt>{html.escape(fact.label)}</dt><dd class="value">{html.escape(fact.value)}</dd>{note}</div>'


def _section(index: int, section: Section) -> str:
    note = f"<p>{html.escape(section.note)}</p>" if section.note else ""
    narrow = " narrow" if section.narrow else ""
    return (
        f'<section class="card{narrow}"><h2>{html.escape(section.title)}</h2>{note}'
        f'<div class="chart" data-chart="{index}"></div></section>\n'
    )


def _asset(name: str) -> str:
    return resources.files("compiler.reports").joinpath("assets", name).read_text(encoding="utf-8")
