"""The command `tensorwright`: one file per command. Commands call the API and display its results."""

from compiler.cli.entry import main

__all__ = ["main"]
