"""The example finds a ticket that recognizes nearly what the whole net does."""

from __future__ import annotations

import pytest


def test_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    pytest.importorskip("torch")
    from examples.lottery_ticket import main

    main(["--amount", "0.8", "--rounds", "2", "--epochs", "2"])
    whole, rewound, _ = (float(line.rsplit(maxsplit=1)[-1]) for line in capsys.readouterr().out.splitlines()[-3:])
    assert whole > 0.9
    assert rewound > whole - 0.1
