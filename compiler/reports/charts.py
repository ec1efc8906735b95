"""The charts of a report page, as data; `assets/*.js` draws them.

A unit is "s" (seconds), "B" (bytes), "%" (fractions of one), "1/s" (operations per second) or "" (plain numbers); the
page scales it to ms, MiB and so on. Categories get their colors in the order of `Page.categories`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, ClassVar, Literal

Unit = Literal["s", "B", "%", "1/s", ""]


@dataclass(frozen=True)
class Chart:
    """Base of all charts: `spec()` is the data passed to the page's script."""

    kind: ClassVar[str] = ""

    def spec(self) -> dict[str, Any]:
        """The chart as JSON data."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class Bar:
    """One bar: `text` is shown at its end, `details` in its tooltip."""

    label: str
    value: float
    category: str = ""
    text: str = ""
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class BarChart(Chart):
    """Horizontal bars in the given order."""

    kind: ClassVar[str] = "bars"
    bars: Sequence[Bar]
    unit: Unit = ""


@dataclass(frozen=True)
class ShareStrip(Chart):
    """One bar divided among categories, with a legend of values and shares."""

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
    """Spans over time, with nested ones below: a flame chart that can be zoomed and dragged."""

    kind: ClassVar[str] = "timeline"
    spans: Sequence[Span]


@dataclass(frozen=True)
class Mark:
    """A value marked on an axis."""

    label: str
    value: float


@dataclass(frozen=True)
class Series:
    """A named line through points (x, y); `line` draws the line even in a chart of points."""

    name: str
    points: Sequence[tuple[float, float]]
    category: str = ""
    line: bool = False


@dataclass(frozen=True)
class LineChart(Chart):
    """Lines over a common x axis; `steps` draws stairs, `points` draws points without a line, `area` fills the area
    below the first line. `labels` name the points of the first line in tooltips, and next to the points if there are
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
    """A column: numbers (with a unit) are aligned right and sorted as numbers; `bar` draws the share behind them."""

    key: str
    label: str
    unit: Unit = ""
    number: bool = False
    bar: bool = False


@dataclass(frozen=True)
class Table(Chart):
    """Rows that can be sorted and searched, in the given order if `sort_by` names no column; a cell of None is shown as
    a dash. `details_key`: key of each row's names and values, [[name, value], ...], shown when it is clicked. `id_key`:
    key of each row's node in a `Graph` of the page; a click on either marks both."""

    kind: ClassVar[str] = "table"
    columns: Sequence[Column]
    rows: Sequence[dict[str, Any]]
    category_key: str = ""
    sort_by: str = ""
    details_key: str = ""
    id_key: str = ""


@dataclass(frozen=True)
class Node:
    """A node of a graph: `level` is its column and `slot` its row; `text` is shown below its label."""

    id: int
    label: str
    category: str = ""
    text: str = ""
    level: int = 0
    slot: int = 0
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph(Chart):
    """Nodes from left to right and the edges between them, (from, to) by id. See `layered` for their positions."""

    kind: ClassVar[str] = "graph"
    nodes: Sequence[Node]
    edges: Sequence[tuple[int, int]]


def layered(nodes: Sequence[Node], edges: Sequence[tuple[int, int]]) -> Graph:
    """A graph with its nodes in levels, each after all nodes that it has an edge from. `nodes`: in a topological order
    of the edges."""
    sources: dict[int, list[int]] = {}
    for source, target in edges:
        sources.setdefault(target, []).append(source)
    placed: dict[int, Node] = {}
    occupied: set[tuple[int, int]] = set()
    for node in nodes:
        predecessors = [placed[each] for each in sources.get(node.id, ())]
        level = max((each.level + 1 for each in predecessors), default=0)
        # In the row of its direct predecessor, so that chains are straight.
        slot = min((each.slot for each in predecessors if each.level + 1 == level), default=0)
        while (level, slot) in occupied:
            slot += 1
        occupied.add((level, slot))
        placed[node.id] = replace(node, level=level, slot=slot)
    return Graph(list(placed.values()), edges)
