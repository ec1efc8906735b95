"""The device suite itself: its cases pass, reach the code under test, and detect defects."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.fuzz import device
from tests.fuzz.device_driver import Driver, SanitizerReport


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> device.Samples:
    return device.prepare(tmp_path_factory.mktemp("fuzz"))


def test_the_samples_are_sound(samples: device.Samples) -> None:
    driver = Driver(samples.program)
    for content in samples.modules:
        path = samples.folder / "sound.twm"
        path.write_bytes(content)
        assert [driver.ask([command, str(path)]) for command in ("load", "read")] == ["ok", "ok"]
    for number, (module, content) in enumerate(samples.inputs):
        path = samples.folder / f"sound-{number}"
        path.write_bytes(content)
        assert driver.ask(["inputs", str(module), str(path)]) == "ok"
    driver.close()


def test_no_case_fails(samples: device.Samples) -> None:
    outcomes = [device.case(samples, seed) for seed in range(180)]
    assert [outcome for outcome in outcomes if outcome.failed] == []
    kinds = Counter(outcome.kind for outcome in outcomes)
    assert kinds["refused"] > 100
    assert kinds["right"] > 0
    assert any(outcome.label.startswith("inputs") for outcome in outcomes)
    assert {outcome.kind for outcome in outcomes if outcome.label == "image"} == {"right", "refused"}


def test_a_defect_would_be_seen(samples: device.Samples) -> None:
    driver = Driver(samples.program)
    with pytest.raises(SanitizerReport, match="heap-buffer-overflow"):
        driver.ask(["overrun"])
    assert "unknown command" in driver.ask(["nonsense"])
    driver.close()


def test_what_python_refuses_would_be_seen(samples: device.Samples, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Driver, "ask", lambda *_: "ok")
    assert "wrong" in {device.case(samples, seed).kind for seed in range(20)}
