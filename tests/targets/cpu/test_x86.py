"""The x86 targets: presets against LLVM's tables, the detected host, names."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from tvm import te

import targets
from schedules.ir.tir import tvm
from schedules.selection.apply import apply_schedules
from targets import cpuinfo
from targets.cpu import x86
from targets.processors import usable_cores

PRESETS = sorted(x86.presets())


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_requires_exactly_what_llvm_may_use(name: str) -> None:
    target = targets.get(name, cores=4)
    assert isinstance(target, x86.X86Target)
    may_use = {feature for feature in x86.llvm_features(target.mcpu) if x86.is_codegen_feature(feature)}
    assert set(target.required_features) == may_use
    assert target.machine.cores == 4
    json.dumps(target.describe())


@pytest.mark.parametrize("name", PRESETS)
def test_full_vectors_are_used(name: str) -> None:
    target = targets.get(name, cores=1)
    a = te.placeholder((4096,), name="a")
    function = te.create_prim_func([a, te.compute((4096,), lambda i: a[i] * a[i] + a[i])])
    module = tvm.IRModule({"kernel": function.with_attr("global_symbol", "kernel")})
    scheduled, _ = apply_schedules(module, target.machine)
    assembly = tvm.compile(scheduled, target=target.tvm_target()).mod.inspect_source("asm")
    wide = target.machine.vector_bits == 512 and target.machine.executes("avx512f")
    register = "%zmm" if wide else "%ymm" if target.machine.executes("avx") else "%xmm"
    assert register in assembly


def test_host_is_this_machine() -> None:
    host = targets.get("host")
    assert host.fits_this_machine()
    assert host.machine.cores == usable_cores()
    assert set(host.required_features) <= cpuinfo.features()


def test_the_host_may_not_use_a_feature_that_the_system_hides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(x86, "_llvm_host", lambda: ("znver4", x86.level_features("x86-64-v3")))
    host = x86.host()
    assert isinstance(host, x86.X86Target)
    assert "-avx512f" in host.attributes
    assert host.machine.vector_bits == 256
    assert not any(feature.startswith("avx512") for feature in host.required_features)
    assert host.machine.memory_rate == targets.get("znver4").machine.memory_rate


def test_the_nearest_preset_where_a_virtual_machine_reports_another_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """LLVM takes some Granite Rapids for Rocket Lake, whose features are fewer."""
    features = frozenset(targets.get("sapphire-rapids").required_features)
    monkeypatch.setattr(x86, "_llvm_host", lambda: ("rocketlake", features))
    host = x86.host()
    assert isinstance(host, x86.X86Target)
    assert "+amx-tile" in host.attributes
    assert dict(host.machine.rates) == {"vdpbf16ps": 0.5}
    assert host.machine.memory_rate == targets.get("sapphire-rapids").machine.memory_rate


def test_a_refusal_of_tiles_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    features = frozenset(targets.get("cooperlake").required_features)
    monkeypatch.setattr(x86, "_llvm_host", lambda: ("sapphirerapids", features))
    monkeypatch.setattr(cpuinfo, "reported_features", lambda: features | {"amx-tile"})
    host = x86.host()
    assert isinstance(host, x86.X86Target)
    assert "the system does not permit AMX" in host.description
    assert "-amx-tile" in host.attributes
    assert not host.machine.has("amx-tile")


@pytest.mark.parametrize(("wrong", "near"), [("x86-64-v9", "x86-64-v4"), ("zenver4", "znver4"), ("hots", "host")])
def test_an_unknown_name_gets_suggestions(wrong: str, near: str) -> None:
    with pytest.raises(targets.UnknownTarget) as caught:
        targets.get(wrong)
    assert near in caught.value.suggestions or near in str(caught.value.hint)


def test_names_are_forgiving_about_case_and_underscores() -> None:
    assert targets.get("X86_64_V3", cores=2).name == "x86-64-v3"


def test_a_target_for_more_than_this_machine_does_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpuinfo, "features", lambda: x86.level_features("x86-64-v2"))
    target = targets.get("x86-64-v3", cores=1)
    assert not target.fits_this_machine()
    assert "avx2" in target.missing_features()


def test_an_exported_library_runs(tmp_path: Path) -> None:
    target = targets.get("x86-64-v2", cores=1)
    a = te.placeholder((8,), name="a")
    function = te.create_prim_func([a, te.compute((8,), lambda i: a[i] + 1.0)])
    path = tmp_path / "library.so"
    target.export_library(tvm.compile(function, target=target.tvm_target()), path)
    loaded = tvm.runtime.load_module(str(path))
    out = tvm.runtime.tensor(np.zeros(8, "float32"))
    loaded["main"](tvm.runtime.tensor(np.arange(8, dtype="float32")), out)
    np.testing.assert_array_equal(out.numpy(), np.arange(8) + 1.0)
