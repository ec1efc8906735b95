"""The page of a quantization in a browser, with long names and long reasons."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from compiler.compression.quantization.report import LayerReport, QuantizationReport, Size, quantization_page
from tests.compiler.profiling.conftest import chromium

_REASON = "one of the most sensitive layers, and slower in integers than in float: the limit does not hold with it"
# What lies outside of its box, in pixels: the table to the right, names of bars to the left.
_MEASURE = """<script>
const table = document.querySelector(".scroll");
const names = [...document.querySelectorAll("svg text")].map((text) => text.getBBox().x);
document.body.dataset.outside = [table.scrollWidth - table.clientWidth, Math.max(0, ...names.map((x) => -x))].join(" ");
</script></body>"""


def _report() -> QuantizationReport:
    layers = [
        LayerReport(
            f"conv2d_{index} 256x128x3x3 from /model/layers.{index}/block/conv1/Conv_output_0",
            integer=bool(index % 2),
            reason="" if index % 2 else _REASON,
            noise=20.25 + index,
            sensitivity=11.123 + index,
            low=-1.234e-5 * (index + 1),
            high=3.2345,
            scale=0.02345,
            zero=128,
            clipped=0.00012,
            weight_noise=41.2,
        )
        for index in range(12)
    ]
    size = Size(4_000_000, 1_000_000, 0.004, 0.002)
    return QuantizationReport("host", "mse", (), "uint8", True, 8, 1.0, 0.998, 0.002, 0.01, 3, tuple(layers), size)


@pytest.mark.skipif(chromium() is None, reason="no Chromium to run the page in")
def test_everything_is_within_the_page(tmp_path: Path) -> None:
    path = tmp_path / "page.html"
    path.write_text(quantization_page(_report()).replace("</body>", _MEASURE))
    command = [str(chromium()), "--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,900"]
    done = subprocess.run(
        [*command, "--virtual-time-budget=2000", "--dump-dom", path.as_uri()],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    [outside] = re.findall(r'data-outside="([^"]*)"', done.stdout)
    assert [float(each) for each in outside.split()] == [0, 0]
    assert '<td class="last">' + _REASON in done.stdout
