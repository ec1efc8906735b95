"""`tensorwright passes`."""

from __future__ import annotations

from compiler.cli import options
from compiler.cli.output import print_json, print_table

HELP = """List the graph passes in the order they run.

[bold]Typical[/]

  tensorwright passes

[bold]Insert your own pass[/]

  tensorwright compile model.onnx --pass after:fold-constants=my_passes.py:simplify
  tensorwright compile model.onnx --pass instead-of:fold-pad=none
"""


def command(as_json: bool = options.JSON) -> None:
    from compiler.inspection.listings import list_passes

    listed = list_passes()
    if as_json:
        print_json([entry.to_dict() for entry in listed])
        return
    rows = []
    previous = ""
    for entry in listed:
        position = "-" if entry.position is None else str(entry.position)
        rows.append((entry.phase if entry.phase != previous else "", position, entry.name, entry.summary))
        previous = entry.phase
    print_table(("phase", "order", "pass", "what it does"), rows, ("order",))
