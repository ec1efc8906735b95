"""The charts that a report page can show, as data; `assets/*.js` draws them.

A unit is "s" (seconds), "B" (bytes), "%" (shares of one), "1/s" (operations a second) or "" (plain numbers); the page
scales it to ms, MiB and so on. Categories get their colours in the order of `Page.categories`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
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
    """Lines over a common x axis; `steps` draws stairs, `points` draws points without a line. `labels` name the points
    of the first line in tooltips, and beside the points of a chart of few. `log`: both axes are logarithmic, and all
    numbers above 0."""

    kind: ClassVar[str] = "lines"
    series: Sequence[Series]
    x_label: str = ""
    y_label: str = ""
    x_unit: Unit = ""
    y_unit: Unit = ""
    steps: bool = False
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
    `details_key`: of each row's names and values, [[name, value], ...], that a click on it shows."""

    kind: ClassVar[str] = "table"
    columns: Sequence[Column]
    rows: Sequence[dict[str, Any]]
    category_key: str = ""
    sort_by: str = ""
    details_key: str = ""
