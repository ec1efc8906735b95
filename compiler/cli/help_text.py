"""Help texts, whose paragraphs wrap at the width of the terminal."""

from __future__ import annotations

import typer


def wrap_freely(app: typer.Typer) -> None:
    """Join the lines of each paragraph of the commands' help, of groups too; typer would break them where the source
    does."""
    groups = [group for group in app.registered_groups if group.typer_instance is not None]
    infos = [
        *app.registered_commands,
        *groups,
        *(group.typer_instance.info for group in groups if group.typer_instance),
    ]
    for info in infos:
        if isinstance(info.help, str):  # a group may have none of its own
            info.help = joined(info.help)
    for group in groups:
        if group.typer_instance is not None:
            wrap_freely(group.typer_instance)


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
