"""`python -m tensorwright` is the command `tensorwright`."""

import sys


def main() -> int:
    """Run the command line on `sys.argv`; returns the exit code."""
    from compiler.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
