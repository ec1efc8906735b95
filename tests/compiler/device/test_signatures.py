"""Programs without Python accept the same modules as Python, and refuse others with the same messages."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

import compiler
import targets
from compiler.artifact import Artifact, KeyKind, artifact_bytes, read_artifact, write_new_keys
from compiler.device.programs import SOURCES, device_programs
from compiler.errors import SignatureError
from targets.conformance.models import small_net

_BLOCK = 16 + 32 + 64 + 32
_PROGRAM = """
#include <stdio.h>
#include "tensorwright.h"
int main(int count, char** arguments) {
  tensorwright_module* module = NULL;
  const char* const* keys = (const char* const*)arguments + 2;
  int failed = tensorwright_load_trusted(arguments[1], keys, (size_t)(count - 2), &module);
  if (!failed) failed = tensorwright_verify(module, NULL);
  puts(tensorwright_last_error());
  tensorwright_free(module);
  return failed;
}
"""


@pytest.fixture(scope="module")
def programs() -> Path:
    target = targets.get("host", cores=1)
    if not shutil.which(target.compiler().command[0]):
        pytest.skip("no C++ compiler")
    return device_programs(target)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Keys (`release`, `other`), and modules: signed by `release`, unsigned, and with replaced code."""
    folder = tmp_path_factory.mktemp("signed")
    for name in ("release", "other"):
        write_new_keys(folder / f"{name}.pem")
    artifact = compiler.compile(small_net(1), "host", threads=1).artifact
    signed = artifact_bytes(artifact, folder / "release.pem")
    changed = Artifact(
        artifact.manifest,
        memoryview(bytes(artifact.library) + b"\0"),
        artifact.parameters,
        artifact.reference_inputs,
        artifact.reference_outputs,
    )
    replaced = artifact_bytes(changed, folder / "other.pem")[:-_BLOCK] + signed[-_BLOCK:]
    for name, content in (("signed", signed), ("unsigned", artifact_bytes(artifact)), ("replaced", replaced)):
        (folder / f"{name}.twm").write_bytes(content)
    (folder / "both").mkdir()
    for name in ("release", "other"):
        shutil.copy(folder / f"{name}.pem.pub", folder / "both")
    return folder


def run(*command: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(each) for each in command], capture_output=True, text=True, timeout=600)


@pytest.mark.parametrize(
    ("module", "key"),
    [("signed", "release.pem.pub"), ("signed", "both"), ("signed", "other.pem.pub"), ("unsigned", "both"),
     ("replaced", "both")],
)  # fmt: skip
def test_the_runner_decides_as_python_does(programs: Path, folder: Path, module: str, key: str) -> None:
    path = folder / f"{module}.twm"
    done = run(programs / "tensorwright-run", path, "--trusted-key", folder / key, "--verify")
    if module == "signed" and key != "other.pem.pub":
        read_artifact(path, [folder / key])
        assert done.returncode == 0, done.stderr
        assert "verified" in done.stdout
        return
    with pytest.raises(SignatureError) as raised:
        read_artifact(path, [folder / key])
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {raised.value.message}")


def test_without_keys_every_module_runs(programs: Path, folder: Path) -> None:
    assert run(programs / "tensorwright-run", folder / "unsigned.twm").returncode == 0


def test_what_is_no_trusted_key_is_refused(programs: Path, folder: Path, tmp_path: Path) -> None:
    connection = tmp_path / "connection.pem"
    write_new_keys(connection, KeyKind.CONNECTION)
    (tmp_path / "empty").mkdir()
    small = tmp_path / "small.pub"
    # The neutral element, with which a signature of zeros over anything is valid by the bare equation.
    small.write_text(
        "-----BEGIN PUBLIC KEY-----\n"
        "MCowBQYDK2VwAyEAAQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"
        "-----END PUBLIC KEY-----\n"
    )
    for path, words in (
        (f"{connection}.pub", "holds no Ed25519 public key"),
        (folder / "release.pem", "holds no Ed25519 public key"),
        (tmp_path / "missing.pub", "cannot be read"),
        (tmp_path / "empty", "holds no .pem or .pub file"),
        (small, "holds no usable Ed25519 public key"),
    ):
        done = run(programs / "tensorwright-run", folder / "signed.twm", "--trusted-key", path)
        assert done.returncode == 1
        assert words in done.stderr


def test_a_program_in_c(programs: Path, folder: Path, tmp_path: Path) -> None:
    source, program = tmp_path / "load.c", tmp_path / "load"
    source.write_text(_PROGRAM)
    compiled = run(
        "cc", f"-I{SOURCES}", source, "-o", program, f"-L{programs}", "-ltensorwright", "-ltvm_ffi",
        f"-Wl,-rpath,{programs}",
    )  # fmt: skip
    assert compiled.returncode == 0, compiled.stderr
    assert run(program, folder / "signed.twm", folder / "other.pem.pub", folder / "release.pem.pub").returncode == 0
    for module, keys, words in (
        ("signed", [], "no trusted key is given"),
        ("signed", ["other.pem.pub"], "signed by none of the trusted keys"),
        ("unsigned", ["both"], "is not signed"),
        ("replaced", ["both"], "is wrong"),
    ):
        done = run(program, folder / f"{module}.twm", *(folder / key for key in keys))
        assert done.returncode == 1
        assert words in done.stdout
