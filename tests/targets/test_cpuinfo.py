"""Reading the processor's description."""

from __future__ import annotations

from pathlib import Path

import pytest

from targets import cpuinfo


def test_linux_names_become_llvm_names() -> None:
    text = "processor : 0\nflags\t\t: pni sse4_1 abm bmi1 avx512_vnni avx512f avx_vnni amx_tile\n"
    expected = {"sse3", "sse4.1", "lzcnt", "bmi", "avx512vnni", "avx512f", "avxvnni", "amx-tile"}
    assert cpuinfo.parse_features(text) == expected


@pytest.mark.parametrize("allowed", [False, True])
def test_tiles_count_where_the_system_permits_them(monkeypatch: pytest.MonkeyPatch, *, allowed: bool) -> None:
    monkeypatch.setattr(cpuinfo, "reported_features", lambda: frozenset({"avx2", "amx-tile", "amx-bf16"}))
    monkeypatch.setattr(cpuinfo, "allows_tiles", lambda: allowed)
    cpuinfo.features.cache_clear()
    try:
        assert cpuinfo.features() == ({"avx2", "amx-tile", "amx-bf16"} if allowed else {"avx2"})
    finally:
        cpuinfo.features.cache_clear()


@pytest.mark.parametrize(("answer", "allowed"), [(0, True), (-1, False)])
def test_linux_is_asked_for_the_tile_registers(monkeypatch: pytest.MonkeyPatch, answer: int, *, allowed: bool) -> None:
    """arch_prctl(ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA), once a process; a module that needs tiles is refused where
    the answer is no."""
    asked: list[tuple[int, ...]] = []

    class Process:
        def syscall(self, *numbers: int) -> int:
            asked.append(numbers)
            return answer

    flags = "processor : 0\nflags\t\t: fpu avx2 amx_tile amx_bf16\n"
    monkeypatch.setattr("ctypes.CDLL", lambda _: Process())
    monkeypatch.setattr(cpuinfo, "architecture", lambda: "x86_64")
    monkeypatch.setattr("platform.system", lambda: "Linux")
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: flags)
    caches = (cpuinfo.allows_tiles, cpuinfo.reported_features, cpuinfo.features, cpuinfo._known_names)
    for each in caches:
        each.cache_clear()
    try:
        assert cpuinfo.supports("amx-tile") == cpuinfo.supports("amx_bf16") == allowed
        assert cpuinfo.supports("avx2")
        assert ("amx-tile" in cpuinfo.features()) == allowed
        assert asked == [(158, 0x1023, 18)]
    finally:
        for each in caches:
            each.cache_clear()


def test_asking_for_tiles_answers_here() -> None:
    """Linux refuses them if the processor has none."""
    if "amx-tile" not in cpuinfo.reported_features():
        assert not cpuinfo.allows_tiles()


def test_only_what_every_processor_has_counts() -> None:
    assert cpuinfo.parse_features("flags : avx2 fma\nflags : fma\n") == {"fma"}
    assert cpuinfo.parse_features("Features : asimd asimddp\n") == {"neon", "dotprod"}
    assert cpuinfo.parse_features("nothing here") == frozenset()


@pytest.mark.parametrize(("text", "size"), [("32K", 32768), ("1M", 1 << 20), ("7", 7), ("x", None)])
def test_sizes(text: str, size: int | None) -> None:
    assert cpuinfo.parse_size(text) == size


def test_caches_come_from_the_system(tmp_path: Path) -> None:
    for i, (level, kind, size) in enumerate([(1, "Data", "48K"), (1, "Instruction", "32K"), (2, "Unified", "2M")]):
        folder = tmp_path / f"index{i}"
        folder.mkdir()
        for name, value in (("level", str(level)), ("type", kind), ("size", size)):
            (folder / name).write_text(value)
    assert cpuinfo.caches(tmp_path) == cpuinfo.Caches(48 << 10, 2 << 20, None)
    assert cpuinfo.caches(tmp_path / "missing") == cpuinfo.Caches()
