"""Two profiles side by side."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from compiler.errors import OptionError, StorageError
from compiler.profiling.difference import LayerTime, differences, read_profile


def test_layers_are_matched_by_their_nodes_however_they_were_fused() -> None:
    fused = [LayerTime("k1", ("conv1", "relu1"), 3.0), LayerTime("k2", ("conv2",), 1.0), LayerTime("alloc", (), 0.5)]
    apart = [LayerTime("k3", ("conv1",), 3.0), LayerTime("k4", ("relu1",), 2.0), LayerTime("k5", ("conv2",), 1.5)]
    found = [(each.name, each.seconds, each.other) for each in differences(fused, apart)]
    assert found == [("conv1", 3.0, 5.0), ("conv2", 1.0, 1.5), ("alloc", 0.5, None)]
    back = [(each.name, each.seconds, each.other) for each in differences(apart, fused)]
    assert back == [("conv1", 5.0, 3.0), ("conv2", 1.5, 1.0), ("alloc", None, 0.5)]


def test_what_is_no_profile_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "profile.json"
    for text in ("{", "[]", "{}", json.dumps({"layers": [{"name": "a"}], "latency": {"p50": 1.0}})):
        path.write_text(text)
        with pytest.raises(OptionError, match="not a profile with layers"):
            read_profile(path)
    with pytest.raises(StorageError):
        read_profile(tmp_path / "missing.json")
