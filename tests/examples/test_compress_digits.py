"""The example trains, compresses within its limit, and writes its page."""

from __future__ import annotations

from pathlib import Path

import pytest


def test_the_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("torch")
    from examples.compress_digits import main

    page = tmp_path / "digits.html"
    main(["--epochs", "3", "--report", str(page)])
    text = capsys.readouterr().out
    rows = {line[:16].strip(): line[16:].split() for line in text.splitlines()[1:5]}
    assert list(rows) == ["original", "prune", "distill", "quantize"]
    before, after = float(rows["original"][0]), float(rows["quantize"][0])
    assert before > 0.9
    assert after >= before * 0.9
    assert float(text.rsplit(maxsplit=1)[-1]) == pytest.approx(after, abs=1e-3)
    assert "Pareto front" in page.read_text()
