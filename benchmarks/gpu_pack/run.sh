#!/bin/sh
# Runs this pack: ./run [--budget SECONDS] [--only TEXT]
# Results go to $OUT/results.json, or beside this script; a run goes on where the one before was cut.
# Exit status: 0 all right, 1 something is wrong, 2 it cannot run here.
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd) || exit 2
machine=$(uname -m)
if ! grep -q "\"architecture\": \"$machine\"" "$here/pack.json"; then
  echo "error: this pack's programs are for another processor than $machine; make it for the target of this machine" >&2
  exit 2
fi
# Copies of a folder may lose what may be run.
chmod +x "$here/bin/pack-driver" 2>/dev/null
# The program needs a C and a C++ library about as new as those of the machine that made the pack.
said=$("$here/bin/pack-driver" 2>&1)
case "$said" in
  usage:*) ;;
  *)
    echo "error: this pack's program does not start here: $said" >&2
    exit 2
    ;;
esac
# Where containers keep the driver's libcuda.so.1.
for folder in /usr/local/nvidia/lib64 /usr/lib/wsl/lib; do
  [ -e "$folder/libcuda.so.1" ] && LD_LIBRARY_PATH="${LD_LIBRARY_PATH:+$LD_LIBRARY_PATH:}$folder" && export LD_LIBRARY_PATH
done
PYTHONPATH="$here/python"
export PYTHONPATH
python=
if command -v python3 >/dev/null 2>&1; then
  if python3 -c 'import sys, importlib.util; sys.exit(importlib.util.find_spec("torch") is None)' >/dev/null 2>&1; then
    python=$(command -v python3)
  else
    echo "python3 has no torch: no times of PyTorch"
  fi
else
  echo "no python3: no times of PyTorch"
fi
if [ -n "$python" ]; then
  exec "$here/bin/pack-driver" "$here" --python "$python" "$@"
fi
exec "$here/bin/pack-driver" "$here" "$@"
