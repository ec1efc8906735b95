"""Help texts, whose paragraphs wrap at the width of the terminal."""

from __future__ import annotations

import typer


def wrap_freely(app: typer.Typer) -> None:
    """Join the lines of each paragraph of the commands' help, of groups too; typer would break them where the source
    does."""
    for command in app.registered_commands:
        if command.help is not None:
            command.help = joined(command.help)
    for group in app.registered_groups:
        inner = group.typer_instance
        if inner is not None:
            if isinstance(inner.info.help, str):
                inner.info.help = joined(inner.info.help)
            wrap_freely(inner)


def joined(text: str) -> str:
    """The text with the lines of a paragraph in one; indented lines stay as they are."""
    return "\n\n".join(map(_paragraph, text.split("\n\n")))


def _paragraph(text: str) -> str:
    lines: list[str] = []
    for line in text.split("\n"):
        if lines and lines[-1] and line and not line[0].isspace() and not lines[-1][0].isspace():
            lines[-1] += f" {line}"
        else:
            lines.append(line)
    return "\n".join(lines)
