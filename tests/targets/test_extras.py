"""Hints that name what an extra installs."""

from __future__ import annotations

from pathlib import Path

import pytest

from targets.extras import install_command

_PROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.mark.parametrize("extra", ["torch", "ray", "ethos-u"])
def test_the_command_installs_the_packages_of_an_extra(extra: str) -> None:
    tomllib = pytest.importorskip("tomllib")  # Python 3.11
    listed = tomllib.loads(_PROJECT.read_text(encoding="utf-8"))["project"]["optional-dependencies"][extra]
    command = install_command(extra)
    assert command.startswith("pip install '")
    assert {each.split(">")[0].split("=")[0] for each in command.split("'")[1::2]} == {
        each.split(">")[0].split("=")[0] for each in listed
    }
