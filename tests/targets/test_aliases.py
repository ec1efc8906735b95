"""Other names of targets, and of precisions."""

from __future__ import annotations

import pytest

import targets
from compiler.errors import OptionError
from compiler.support.precision import precision_of
from targets import registry
from targets.cuda import device as cuda_device
from targets.errors import TargetError, UnknownTarget


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("rpi5", "raspberry-pi-5"),
        ("pi4", "raspberry-pi-4"),
        ("RaspberryPi5", "raspberry-pi-5"),
        ("raspberry_pi_5", "raspberry-pi-5"),
        ("rpi4-32bit", "raspberry-pi-4-32bit"),
        ("rpi2", "raspberry-pi-2"),
        ("arm64", "aarch64-linux"),
        ("rtx4090", "rtx-4090"),
        ("AVX512", "x86-64-v4"),
        ("cpu", "host"),
    ],
)
def test_other_names(given: str, name: str) -> None:
    assert targets.get(given).name == name


def test_unknown_names_stay_unknown() -> None:
    with pytest.raises(UnknownTarget, match="unknown target 'pi9'"):
        targets.get("pi9")
    with pytest.raises(UnknownTarget) as caught:
        targets.get("pi")
    assert all(name.startswith("raspberry-pi-") for name in caught.value.suggestions)


@pytest.mark.parametrize(("capability", "name"), [(75, "t4"), (86, "rtx-3090"), (90, "h100"), (120, "h100")])
def test_cuda_is_the_device_of_this_machine(capability: int, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_device, "compute_capabilities", lambda: (capability,))
    assert registry.resolved("cuda", targets.names()) == name


def test_cuda_without_a_device_asks_for_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_device, "compute_capabilities", tuple)
    with pytest.raises(TargetError, match="none was found") as caught:
        targets.get("gpu")
    assert "h100" in str(caught.value.hint)
    monkeypatch.setattr(cuda_device, "compute_capabilities", lambda: (61,))
    with pytest.raises(TargetError, match="sm_61"):
        targets.get("gpu")


def test_precisions() -> None:
    assert [precision_of(name) for name in ("fp16", "half", "bfloat16", "float32")] == [
        "float16",
        "float16",
        "bf16",
        "float32",
    ]
    with pytest.raises(OptionError, match="'int8'") as caught:
        precision_of("int8")
    assert "quantize" in str(caught.value.hint)
