"""Finding and running a linker."""

from __future__ import annotations

from pathlib import Path

import pytest

from targets import toolchain
from targets.errors import LinkError, ToolchainMissing


def test_a_missing_linker_says_how_to_install_one() -> None:
    with pytest.raises(ToolchainMissing) as caught:
        toolchain.find_linker([("no-such-linker",)])
    assert "install" in str(caught.value.hint)
    assert "no-such-linker" in caught.value.message


def test_the_override_is_used_and_checked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(toolchain.OVERRIDE, "sh -c")
    assert toolchain.find_linker().command == ("sh", "-c")
    monkeypatch.setenv(toolchain.OVERRIDE, "no-such-linker --flag")
    with pytest.raises(ToolchainMissing, match="no-such-linker"):
        toolchain.find_linker()


def test_a_failing_linker_is_quoted(tmp_path: Path) -> None:
    with pytest.raises(LinkError, match=r"missing\.o"):
        toolchain.find_linker().link(tmp_path / "x.so", ["missing.o"])
