#!/usr/bin/env bash
# Runs a selection of tests on the oldest versions that pyproject.toml allows, in a virtual environment of its own.
# PyTorch stays out: with its CUDA libraries it is 3 GB.
set -euo pipefail
venv="$1"
cd "$(dirname "$0")/../.."
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
python3 tests/system/oldest_versions.py >"$venv/constraints.txt"
"$venv/bin/python" -m pip install --quiet -c "$venv/constraints.txt" -e '.[peers,tune,demo]' \
    pytest pytest-xdist hypothesis setuptools
# What compares with the onnx package or ONNX Runtime on models of today's operator set needs newer ones than the project
# does. NumPy's own arrays over DLPack tensors are read-only there.
"$venv/bin/python" -m pytest -n 2 --dist worksteal -q tests/packaging/test_import.py tests/compiler/cli \
    tests/compiler/artifact tests/compiler/runtime tests/compiler/compression/quantization/test_schemes.py \
    --deselect tests/compiler/runtime/test_module.py::test_a_model_that_returns_its_input_or_a_parameter_gives_copies
