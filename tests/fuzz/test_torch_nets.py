"""A few cases of the torch suite; the long run is `python -m tests.fuzz torch`."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fuzz import torch_nets


def test_random_nets_equal_eager_torch() -> None:
    assert [torch_nets.case("host", seed).kind for seed in (5, 15, 19)] == ["right"] * 3


def test_a_wrong_number_would_be_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    right = torch_nets._expected

    def shifted(net: Any, x: Any) -> list[Any]:
        return [(single + 1, double + 1) for single, double in right(net, x)]

    monkeypatch.setattr(torch_nets, "_expected", shifted)
    assert torch_nets.case("host", 15).kind == "wrong"
