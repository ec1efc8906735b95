"""Draw recorded results as an SVG: the speed of each model relative to ONNX Runtime and OpenVINO.

    python -m benchmarks.picture
    python -m benchmarks.picture results.json --output speed.svg

`results.json` is a file in `benchmarks/results`, or written by `python -m benchmarks.compare ... --json results.json`.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

ROOT = Path(__file__).resolve().parents[1]
RESULTS = Path(__file__).resolve().parent / "results" / "float32-zen5.json"
PICTURE = ROOT / "docs" / "images" / "speed.svg"

_PEERS = {"ONNX Runtime": "#7b9ccb", "OpenVINO": "#e0a458"}
_WIDTH, _LABELS, _RIGHT = 820, 215, 45
_ROW, _BAR, _TOP, _BOTTOM = 28, 10, 74, 56
_FONT = "font-family='system-ui, -apple-system, Segoe UI, Roboto, sans-serif'"


@dataclass(frozen=True)
class Results:
    """Recorded results: rows with `model`, `ours` and `peers` (name to milliseconds), and a description."""

    title: str
    machine: str
    rows: Sequence[Mapping[str, Any]]


def read_results(path: Path) -> Results:
    """Read results from a JSON file: an object as in `benchmarks/results`, or the list of rows of
    `benchmarks.compare`."""
    content = json.loads(path.read_text())
    if isinstance(content, list):
        return Results(path.stem, "", content)
    return Results(content["title"], content["machine"], content["rows"])


def draw(results: Results) -> str:
    """Draw the SVG: two bars per model, time of the other runtime over ours, and a line at equal speed."""
    speeds = [_speeds(row) for row in results.rows]
    largest = math.ceil(max(speed for each in speeds for speed in each.values()))
    scale = (_WIDTH - _LABELS - _RIGHT) / largest
    bottom = _TOP + _ROW * len(speeds)
    parts = [
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {_WIDTH} {bottom + _BOTTOM}' {_FONT} font-size='12'>",
        f"<rect width='{_WIDTH}' height='{bottom + _BOTTOM}' fill='#ffffff'/>",
        _text(16, 26, "Speed of Tensorwright relative to its peers (higher is better)", size=16, weight=600),
        *_legend(),
        *(_grid_line(tick, scale, bottom) for tick in range(largest + 1)),
        *(
            line
            for index, row in enumerate(results.rows)
            for line in _bars(str(row["model"]), speeds[index], _TOP + _ROW * index, scale)
        ),
        f"<line x1='{_LABELS + scale:.1f}' y1='{_TOP - 6}' x2='{_LABELS + scale:.1f}' y2='{bottom}' stroke='#222222'/>",
        _text(16, bottom + 42, ". ".join(filter(None, [results.title, results.machine])), fill="#555555"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _speeds(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the time of each other runtime over ours."""
    return {peer: row["peers"][peer] / row["ours"] for peer in _PEERS if peer in row["peers"]}


def _legend() -> list[str]:
    parts = []
    for index, (peer, color) in enumerate(_PEERS.items()):
        x = 16 + 150 * index
        parts.append(f"<rect x='{x}' y='40' width='12' height='12' fill='{color}'/>")
        parts.append(_text(x + 18, 50, f"over {peer}"))
    return parts


def _grid_line(tick: int, scale: float, bottom: int) -> str:
    x = _LABELS + tick * scale
    line = f"<line x1='{x:.1f}' y1='{_TOP - 6}' x2='{x:.1f}' y2='{bottom}' stroke='#dddddd'/>"
    return line + _text(x, bottom + 18, f"{tick}x", anchor="middle", fill="#555555")


def _bars(model: str, speeds: Mapping[str, float], top: int, scale: float) -> list[str]:
    parts = [_text(_LABELS - 10, top + _BAR + 4, model.split(",")[0] if len(model) > 30 else model, anchor="end")]
    for index, (peer, speed) in enumerate(speeds.items()):
        y, width = top + index * _BAR, speed * scale
        parts.append(
            f"<rect x='{_LABELS}' y='{y}' width='{width:.1f}' height='{_BAR - 1}' fill='{_PEERS[peer]}'>"
            f"<title>{escape(f'{model}: {speed:.2f} times as fast as {peer}')}</title></rect>"
        )
        parts.append(_text(_LABELS + width + 4, y + _BAR - 1, f"{speed:.2f}", size=9, fill="#555555"))
    return parts


def _text(
    x: float, y: float, text: str, *, size: int = 12, weight: int = 400, anchor: str = "start", fill: str = "#222222"
) -> str:
    return (
        f"<text x='{x:.1f}' y='{y}' font-size='{size}' font-weight='{weight}' text-anchor='{anchor}' fill='{fill}'>"
        f"{escape(text)}</text>"
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the results, write the picture."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.picture", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("results", type=Path, nargs="?", default=RESULTS)
    parser.add_argument("--output", type=Path, default=PICTURE)
    options = parser.parse_args(arguments)
    options.output.write_text(draw(read_results(options.results)))
    print(f"wrote {options.output}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
