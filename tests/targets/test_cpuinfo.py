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


def test_asking_for_tiles_answers_here() -> None:
    """Where the processor has none, Linux refuses them."""
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
