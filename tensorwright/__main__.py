"""`python -m tensorwright` is the command `tensorwright`."""

import gc
import sys

_YOUNG_OBJECTS = 20_000  # with Python's 700, collections took a tenth of a short command's time, and freed nothing


def main() -> int:
    """Run the command line on `sys.argv`; returns the exit code."""
    gc.set_threshold(_YOUNG_OBJECTS)
    from compiler.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
