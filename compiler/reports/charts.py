"""The charts that a report page can show, as data; `assets/*.js` draws them.

A unit is "s" (seconds), "B" (bytes), "%" (shares of one), "1/s" (operations a second) or "" (plain numbers); the page
scales it to ms, MiB and so on. Categories get their colours in the order of `Page.categories`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

Unit = Literal["s", "B", "%", "1/s", ""]


@dataclass(frozen=True)
class Chart:
    """Base of all: `spec()` is what the page's script gets."""

    kind: ClassVar[str] = ""

    def spec(self) -> dict[str, Any]:
        """The chart as JSON data."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class Bar:
    """One bar: `text` stands at its end, `details` in its tooltip."""

    label: str
    value: float
    category: str = ""
    text: str = ""
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class BarChart(Chart):
    """Horizontal bars in the order given."""

    kind: ClassVar[str] = "bars"
    bars: Sequence[Bar]
    unit: Unit = ""


@dataclass(frozen=True)
class ShareStrip(Chart):
    """One bar divided among categories, with a legend that gives value and share."""

    kind: ClassVar[str] = "shares"
    values: dict[str, float]
    unit: Unit = ""


@dataclass(frozen=True)
class Span:
    """A time span at a nesting depth; start and duration in seconds."""

    name: str
    category: str
    start: float
    duration: float
    depth: int = 0
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Timeline(Chart):
    """Spans over time, nested ones below: a flame strip to zoom into and drag."""

    kind: ClassVar[str] = "timeline"
    spans: Sequence[Span]


@dataclass(frozen=True)
class Mark:
    """A value marked on an axis."""

    label: str
    value: float


@dataclass(frozen=True)
class Series:
    """A named line through points (x, y); `line` draws it in a chart of points too."""

    name: str
    points: Sequence[tuple[float, float]]
    category: str = ""
    line: bool = False


@dataclass(frozen=True)
class LineChart(Chart):
    """Lines over a common x axis; `steps` draws stairs, `points` draws points without a line, `area` fills what is
    below the first line. `labels` name the points of the first line in tooltips, and beside the points of a chart of
    few. `log`: both axes are logarithmic, and all numbers above 0."""

    kind: ClassVar[str] = "lines"
    series: Sequence[Series]
    x_label: str = ""
    y_label: str = ""
    x_unit: Unit = ""
    y_unit: Unit = ""
    steps: bool = False
    area: bool = False
    points: bool = False
    y_from_zero: bool = True
    log: bool = False
    marks: Sequence[Mark] = ()
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Histogram(Chart):
    """Histogram of values; marks are vertical lines (percentiles)."""

    kind: ClassVar[str] = "histogram"
    values: Sequence[float]
    unit: Unit = ""
    label: str = ""
    marks: Sequence[Mark] = ()


@dataclass(frozen=True)
class Column:
    """A column: numbers (with a unit) are aligned right and sort as numbers; `bar` draws the share behind them."""

    key: str
    label: str
    unit: Unit = ""
    number: bool = False
    bar: bool = False


@dataclass(frozen=True)
class Table(Chart):
    """Rows to sort and search, in the order given where `sort_by` names no column; a cell of None shows as a dash.
    `details_key`: of each row's names and values, [[name, value], ...], that a click on it shows. `id_key`: of each
    row's node in a `Graph` of the page; a click on one of the two marks both."""

    kind: ClassVar[str] = "table"
    columns: Sequence[Column]
    rows: Sequence[dict[str, Any]]
    category_key: str = ""
    sort_by: str = ""
    details_key: str = ""
    id_key: str = ""


@dataclass(frozen=True)
class Node:
    """A node of a graph: `level` is its column and `slot` its row; `text` stands below its label."""

    id: int
    label: str
    category: str = ""
    text: str = ""
    level: int = 0
    slot: int = 0
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph(Chart):
    """Nodes from left to right and the edges between them, (from, to) by their ids. See `layered` for their places."""

    kind: ClassVar[str] = "graph"
    nodes: Sequence[Node]
    edges: Sequence[tuple[int, int]]


def layered(nodes: Sequence[Node], edges: Sequence[tuple[int, int]]) -> Graph:
    """A graph with its nodes in levels, each one behind all that it has an edge from.

    Args:
        nodes: in a topological order of the edges.
    """
    sources: dict[int, list[int]] = {}
    for source, target in edges:
        sources.setdefault(target, []).append(source)
    placed: dict[int, Node] = {}
    taken: set[tuple[int, int]] = set()
    for node in nodes:
        before = [placed[each] for each in sources.get(node.id, ())]
        level = max((each.level + 1 for each in before), default=0)
        # In the row of what is straight ahead of it, so that chains are straight.
        slot = min((each.slot for each in before if each.level + 1 == level), default=0)
        while (level, slot) in taken:
            slot += 1
        taken.add((level, slot))
        placed[node.id] = replace(node, level=level, slot=slot)
    return Graph(list(placed.values()), edges)
