#!/usr/bin/env bash
# Makes what the tests of Triton's backend run against: an environment of its own with the server that the wheel nvidia-pytriton
# bundles (no GPU needed) and Triton's client, and Triton's public headers. Both pin versions that would change others here.
#   tests/system/install_triton.sh [FOLDER]    (~/.cache/tensorwright/triton)
set -euo pipefail
folder="${1:-${TENSORWRIGHT_TRITON:-$HOME/.cache/tensorwright/triton}}"
core=https://raw.githubusercontent.com/triton-inference-server/core/73aad7c3348d040c7087d57837d75822c488495e/include/triton/core
mkdir -p "$folder/include/triton/core"
[ -x "$folder/venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$folder/venv"
# nvidia-pytriton pins numpy<2 for its own Python part, which is not used: so without dependencies.
"$folder/venv/bin/pip" install -q --no-deps nvidia-pytriton==0.7.0 tritonclient==2.73.0
"$folder/venv/bin/pip" install -q numpy grpcio protobuf geventhttpclient python-rapidjson urllib3 packaging
for header in tritonserver tritonbackend; do
    [ -s "$folder/include/triton/core/$header.h" ] || curl -fsSL "$core/$header.h" -o "$folder/include/triton/core/$header.h"
done
echo "Triton is in $folder"
