"""Reports as one HTML page each: charts and tables without a network, light and dark.

Page("Title", "What it shows", facts=[Fact("latency", "3.4 ms")], sections=[Section("Bars", BarChart([...]))])
html = render(page)
"""

from compiler.reports.charts import (
    Bar,
    BarChart,
    Column,
    Histogram,
    LineChart,
    Mark,
    Series,
    ShareStrip,
    Span,
    Table,
    Timeline,
)
from compiler.reports.page import Fact, Page, Section, render

__all__ = [
    "Bar",
    "BarChart",
    "Column",
    "Fact",
    "Histogram",
    "LineChart",
    "Mark",
    "Page",
    "Section",
    "Series",
    "ShareStrip",
    "Span",
    "Table",
    "Timeline",
    "render",
]
