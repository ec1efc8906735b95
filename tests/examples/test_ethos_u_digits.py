"""The example trains, quantizes for the accelerator, and recognizes digits in its simulator."""

from __future__ import annotations

import pytest


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    for module in ("sklearn", "torch", "ethosu.vela", "tosa_serializer"):
        pytest.importorskip(module)
    from examples.ethos_u_digits import main

    main(["--epochs", "3", "--channels", "8", "--images", "30"])
    text = capsys.readouterr().out
    assert "100 % of the operators, 100 % of the multiply-adds" in text
    assert float(text.rsplit(maxsplit=1)[-1]) > 0.5  # ten digits: guessing gives 0.1
