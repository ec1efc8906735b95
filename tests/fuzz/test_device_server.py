"""The device-server suite itself: each kind of hostile client ends, and defects are detected."""

from __future__ import annotations

import pytest

from tests.fuzz import device_server


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> device_server.Samples:
    return device_server.prepare(tmp_path_factory.mktemp("fuzz"))


def test_no_case_fails(samples: device_server.Samples) -> None:
    outcomes = [device_server.case(samples, seed) for seed in range(24)]
    assert [outcome for outcome in outcomes if outcome.failed] == []
    assert {outcome.label for outcome in outcomes} == {each.__name__.strip("_") for each in device_server.ATTACKS}


def test_a_report_and_a_server_that_ended_would_be_seen(samples: device_server.Samples) -> None:
    server = device_server.Server(samples, None)
    (server.folder / "sanitizer.1").write_text("ERROR: AddressSanitizer: heap-use-after-free")
    assert server.verdict(by_rpc=False)[0] == "crash"
    assert server.verdict(by_rpc=False)[0] == "crash"  # it was killed
