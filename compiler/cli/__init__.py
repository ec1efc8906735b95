"""The command `tensorwright`: one file a command. Nothing is computed here; the API is called and its answer shown."""

from compiler.cli.entry import main

__all__ = ["main"]
