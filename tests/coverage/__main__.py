"""`python -m tests.coverage TABLE`: each table is a module of this package with `add_arguments` and `main`."""

from __future__ import annotations

import argparse
import importlib
import sys

TABLES = {
    "onnx": "onnx_table",
    "models": "models_table",
    "files": "files_table",
    "language": "language_table",
    "gguf": "gguf_table",
    "packages": "packages.table",
}


def main() -> int:
    """Parse the arguments and make the requested table."""
    parser = argparse.ArgumentParser(prog="python -m tests.coverage", description=__doc__)
    tables = parser.add_subparsers(dest="table", required=True)
    for name, module in TABLES.items():
        loaded = importlib.import_module(f"tests.coverage.{module}")
        child = tables.add_parser(name, help=(loaded.__doc__ or "").splitlines()[0])
        loaded.add_arguments(child)
        child.set_defaults(main=loaded.main)
    options = parser.parse_args()
    return int(options.main(options))


if __name__ == "__main__":
    sys.exit(main())
