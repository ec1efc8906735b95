"""Display of results in notebooks, as a table of facts or a table of rows: plain HTML in the notebook's own style."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

_LEFT, _RIGHT = "text-align:left", "text-align:right"


def facts_html(title: str, facts: Iterable[tuple[str, object]]) -> str:
    """A titled table of names and values; line breaks in values are kept."""
    rows = "".join(f"<tr><th style='{_LEFT}'>{escape(name)}</th>{_cell(value)}</tr>" for name, value in facts)
    return f"<div><strong>{escape(title)}</strong><table><tbody>{rows}</tbody></table></div>"


def table_html(title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A titled table; numbers are right-aligned."""
    head = "".join(f"<th style='{_LEFT}'>{escape(column)}</th>" for column in columns)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return (
        f"<div><strong>{escape(title)}</strong><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def shortened(items: Sequence[object], limit: int = 3, separator: str = ", ") -> str:
    """The first few items as text, and the number of remaining items."""
    text = separator.join(map(str, items[:limit]))
    return text if len(items) <= limit else f"{text}{separator}and {len(items) - limit} more"


def _cell(value: object) -> str:
    style = _RIGHT if isinstance(value, int | float) else _LEFT
    text = f"{value:.6g}" if isinstance(value, float) else str(value)
    return f"<td style='{style}'>{escape(text).replace(chr(10), '<br>')}</td>"
