"""The example trains, quantizes within its limit, and writes its page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest


def test_the_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("torch")
    from examples.quantize_digits import main

    page = tmp_path / "digits.html"
    main(["--epochs", "3", "--channels", "8", "--report", str(page)])
    text = capsys.readouterr().out
    before, after = map(float, re.findall(r"score ([\d.]+), then ([\d.]+)", text)[0])
    assert before > 0.5  # ten digits: guessing gives 0.1
    assert after >= before * 0.99
    assert float(text.rsplit(maxsplit=1)[-1]) == pytest.approx(after, abs=1e-4)
    assert "first.0.body.3" in page.read_text()
