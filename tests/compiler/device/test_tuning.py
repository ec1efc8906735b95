"""Tuning on a device without Python: kernels go to the C++ server, emulated, and are checked and timed there."""

from __future__ import annotations

from pathlib import Path

import compiler
from compiler.records.records import read
from targets import Target
from tests.compiler.device.test_shipping import bundle, net, root, server, server_process, target  # noqa: F401  (fixtures)
from tests.fuzz.tuning import convolution_model


def test_kernels_are_measured_by_the_device_server(
    server: tuple[str, Path],  # noqa: F811
    target: Target,  # noqa: F811
    tmp_path: Path,
) -> None:
    address, _ = server
    result = compiler.tune(
        convolution_model(),
        target,
        trials=3,
        records=tmp_path / "records",
        devices=[address],
        threads=1,
        cost_model="roofline",
    )
    records = read(tmp_path / "records").records
    assert [record.status for record in records] == ["ok"] * len(records), [record.note for record in records]
    assert {record.device for record in records} == {address}
    assert len(records) >= 1
    assert result.interrupted is False
    assert all("could not be measured" not in task.finished for task in result.tasks)
