"""A module for another machine is refused before its code is loaded; the message names the missing features."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from compiler.artifact import Artifact, TargetDescription
from compiler.errors import IncompatibleArtifactError
from compiler.runtime import Module
from targets import cpuinfo
from tests.compiler.runtime.building import dense_artifact


def _changed(**fields: Any) -> Artifact:
    artifact = dense_artifact()
    return replace(artifact, manifest=msgspec.structs.replace(artifact.manifest, **fields))


def _target(architecture: str | None = None, features: tuple[str, ...] = ()) -> TargetDescription:
    return TargetDescription(
        name="other", architecture=architecture or cpuinfo.architecture(), required_cpu_features=features
    )


def test_another_architecture() -> None:
    with pytest.raises(IncompatibleArtifactError, match=r"compiled for s390x .*this machine is"):
        Module(_changed(target=_target("s390x")))


def test_a_missing_feature_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpuinfo, "_known_names", lambda: frozenset({"avx2", "fma"}))
    with pytest.raises(IncompatibleArtifactError, match=r"lacks: avx512f, avx512_vnni \("):
        Module(_changed(target=_target(features=("avx2", "avx512f", "+fma", "avx512_vnni"))))
    Module(_changed(target=_target(features=("avx2", "fma"))))


def test_another_engine() -> None:
    versions = msgspec.structs.replace(dense_artifact().manifest.versions, tvm="0.26.0")
    with pytest.raises(IncompatibleArtifactError, match=r"compiled with TVM 0\.26\.0"):
        Module(_changed(versions=versions))


def test_code_for_another_architecture_than_the_manifest_says() -> None:
    library = bytearray(dense_artifact().library)
    library[18:20] = (22).to_bytes(2, "little")  # e_machine: S/390
    with pytest.raises(IncompatibleArtifactError, match="ELF machine 22"):
        Module(replace(dense_artifact(), library=bytes(library)))


CPUINFO = """processor\t: 0
flags\t\t: fpu lm cx16 pni ssse3 sse4_1 sse4_2 avx f16c fma abm bmi1 bmi2 avx2 avx512f avx512_vnni avx512_bf16 sha_ni
processor\t: 1
"""
CPUINFO_ARM = "processor\t: 0\nFeatures\t: fp asimd atomics fphp asimdhp asimdrdm asimddp i8mm bf16 sve crc32\n"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (
            CPUINFO,
            ["sse3", "sse4.2", "sse4_1", "lzcnt", "bmi", "avx512vnni", "avx512_vnni", "avx512bf16", "+sha", "crc32"],
        ),
        (CPUINFO_ARM, ["neon", "+dotprod", "lse", "fullfp16", "rdm", "i8mm", "bf16", "sve", "crc", "fp-armv8"]),
    ],
    ids=["x86", "arm"],
)
def test_both_spellings_of_features(monkeypatch: pytest.MonkeyPatch, text: str, wanted: list[str]) -> None:
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: text)
    cpuinfo._known_names.cache_clear()
    try:
        missing = [feature for feature in wanted if not cpuinfo.supports(feature)]
        assert missing == []
        assert not cpuinfo.supports("avx512fp16")
    finally:
        cpuinfo._known_names.cache_clear()


def test_this_machine_has_what_its_own_target_requires() -> None:
    targets = pytest.importorskip("targets")
    host = targets.get("host")
    missing = [name for name in host.required_features if not cpuinfo.supports(name)]
    assert missing == []
