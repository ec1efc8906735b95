"""Fuzz what the C++ runtime reads, guided by coverage: `python -m tests.fuzz.libfuzzer --seconds 600`.

Builds `cpp/fuzz_artifact.cc` with Clang's libFuzzer, AddressSanitizer and UndefinedBehaviorSanitizer, and starts from
sound files. Needs clang and its runtime (Debian: clang, libclang-rt-dev). Inputs that show a defect are left in the
current folder, as `crash-...`; give their paths in place of `--seconds` to run them again.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

import targets
from compiler.artifact.tensors import Blob
from compiler.device.programs import CHECKING_SOURCES, COMPILE_OPTIONS, SOURCES
from compiler.device.runtime_sources import ffi_source_folder, include_folders, include_options
from compiler.device.third_party_objects import third_party_includes, third_party_objects
from compiler.runtime.tvm_runtime import tvm_ffi
from tests.fuzz.artifact_mutations import Parts
from tests.fuzz.artifacts import prepare
from tests.fuzz.device_driver import CPP

_SANITIZERS = ("-g1", "-O1", "-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all")
_FORMULAS = ("n", "2*n*(m + 1)", "min(n, m, 3) // -2 % 7 - max(1)")


def build(folder: Path) -> Path:
    """Compile the target into a folder. Raises CalledProcessError."""
    sources = [*(SOURCES / name for name in (*CHECKING_SOURCES, "mapped_code.cc"))]
    sources += [CPP / name for name in ("fuzz_artifact.cc", "instrumented_json.cc")]
    together, program = folder / "all.cc", folder / "fuzz_artifact"
    together.write_text("".join(f'#include "{source}"\n' for source in sources), encoding="utf-8")
    includes = include_options([*include_folders(), ffi_source_folder() / "extra", *third_party_includes()])
    libraries = Path(tvm_ffi.libinfo.find_libtvm_ffi()).parent
    links = [
        *map(str, third_party_objects(targets.get("host", cores=1))),
        f"-L{libraries}",
        "-ltvm_ffi",
        f"-Wl,-rpath,{libraries}",
    ]
    options = [*COMPILE_OPTIONS, *_SANITIZERS, f"-I{SOURCES}", f"-I{CPP}", *includes]
    subprocess.run(["clang++", *options, str(together), "-o", str(program), *links], check=True)
    return program


def write_corpus(folder: Path) -> None:
    """Sound inputs of every kind that the target knows."""
    folder.mkdir()
    inputs = {"x": np.ones((3, 4), np.float32), "i": np.array([0, -3, 2]), "b": np.array([True, False, True])}
    samples = [b"\x03" + b"".join(Blob(inputs).pieces), *(b"\x05" + formula.encode() for formula in _FORMULAS)]
    for content in prepare(folder).files:
        parts = Parts.of(content)
        manifest = json.dumps(parts.manifest, separators=(",", ":")).encode()
        samples += [b"\0" + content, b"\1" + content, b"\2" + manifest, b"\4" + parts.sections["library"]]
    for number, sample in enumerate(samples):
        (folder / f"sample-{number}").write_bytes(sample)


def main() -> int:
    """Build and run; the exit status of the fuzzer."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz.libfuzzer", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=int, default=60)
    parser.add_argument("--corpus", type=Path, help="a folder that keeps what was found to be interesting")
    parser.add_argument("files", nargs="*", type=Path, help="inputs to run again")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tensorwright-fuzz-") as name:
        folder = Path(name)
        program = str(build(folder))
        if options.files:
            return subprocess.run([program, *map(str, options.files)]).returncode
        write_corpus(folder / "samples")
        kept = options.corpus or folder / "corpus"
        kept.mkdir(exist_ok=True)
        limits = [f"-max_total_time={options.seconds}", "-max_len=200000", "-timeout=20", "-rss_limit_mb=4096"]
        return subprocess.run([program, *limits, str(kept), str(folder / "samples")]).returncode


if __name__ == "__main__":
    sys.exit(main())
