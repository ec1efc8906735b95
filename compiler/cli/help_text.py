"""Help texts, whose paragraphs wrap at the width of the terminal."""

from __future__ import annotations

import re
import shutil

import typer

_EXAMPLE = re.compile(r"(  +)tensorwright ")
_WORDS = re.compile(r'(?:--?[a-z][\w-]* +(?!-))?(?:"[^"]*"|\S)+')  # an option stays with its value


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


def joined(text: str, width: int | None = None) -> str:
    """The text with the lines of a paragraph in one; indented lines stay, but that commands which are wider than the
    terminal continue on further lines, as a shell reads them."""
    columns = (shutil.get_terminal_size().columns if width is None else width) - 2  # the margins of typer
    paragraphs = "\n\n".join(map(_paragraph, text.split("\n\n")))
    return "\n".join(_broken(line, columns) for line in paragraphs.split("\n"))


def _broken(line: str, columns: int) -> str:
    """A command over several lines, each but the last ending in a backslash."""
    example = _EXAMPLE.match(line)
    if len(line) <= columns or example is None:
        return line
    lines = [example[1]]
    for word in _WORDS.findall(line):
        if len(lines[-1]) + len(word) + 2 > columns and lines[-1].strip():
            lines[-1] += "\\"
            lines.append(f"{example[1]}    ")
        lines[-1] += f"{word} "
    return "\n".join(lines).rstrip()


def _paragraph(text: str) -> str:
    lines: list[str] = []
    for line in text.split("\n"):
        if lines and lines[-1] and line and not line[0].isspace() and not lines[-1][0].isspace():
            lines[-1] += f" {line}"
        else:
            lines.append(line)
    return "\n".join(lines)
