"""Generate the reference page of the command line from the commands."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

_MARKUP = re.compile(r"\[/?(?:bold|dim|italic|cyan)?\]")


def command_line_page() -> str:
    """Return Markdown with each command's help, arguments and options, in the order of `tensorwright --help`."""
    from typer.main import get_command

    from compiler.cli.app import application

    root: Any = get_command(application())
    lines = ["# Command line", "", "Generated from `tensorwright --help` and the help of each command.", ""]
    lines += ["## tensorwright", "", *_options(root)]
    for name, command in root.commands.items():
        lines += _command(f"tensorwright {name}", command, "##")
    return "\n".join(lines).rstrip() + "\n"


def _command(path: str, command: Any, heading: str) -> Iterator[str]:
    yield from (f"{heading} {path}", "", *_help(command.help or ""))
    if hasattr(command, "commands"):
        for name, subcommand in command.commands.items():
            yield from _command(f"{path} {name}", subcommand, heading + "#")
        return
    arguments = [each for each in command.params if each.param_type_name == "argument"]
    usage = " ".join([path, "[OPTIONS]", *map(_metavar, arguments)])
    yield from ("```text", usage, "```", "", *_options(command))


def _help(text: str) -> list[str]:
    """Convert a help text: paragraphs unchanged, indented commands to code blocks, titles to bold text."""
    lines: list[str] = []
    inside = False
    for line in text.rstrip().splitlines():
        indented = line.startswith("  ") and bool(line.strip())
        if indented and not inside:
            lines += ["```text"]
        if inside and not indented and line.strip():
            while not lines[-1]:
                lines.pop()
            lines += ["```", ""]
        inside = indented or (inside and not line.strip())
        plain = re.sub(r"\[bold\](.*?)\[/\]", r"\1" if inside else r"**\1**", line)
        lines.append(_MARKUP.sub("", plain)[2 if indented else 0 :])
    while lines and not lines[-1]:
        lines.pop()
    return [*lines, "```", ""] if inside else [*lines, ""]


def _options(command: Any) -> Iterator[str]:
    rows = [_row(each) for each in command.params if getattr(each, "help", None) and not getattr(each, "hidden", False)]
    if rows:
        yield from ("| option | meaning |", "|---|---|", *rows, "")


def _row(parameter: Any) -> str:
    if parameter.param_type_name == "argument":
        names = f"`{_metavar(parameter)}`"
    else:
        names = ", ".join(f"`{each}`" for each in (*parameter.opts, *parameter.secondary_opts))
        if not parameter.is_flag:
            names += f" `{_metavar(parameter)}`"
    text = _MARKUP.sub("", " ".join(parameter.help.split()))
    default = parameter.default
    if isinstance(default, str | int | float) and not isinstance(default, bool):
        text += f" Default: `{default}`."
    names, text = (each.replace("|", "\\|").replace("<", "&lt;") for each in (names, text))
    return f"| {names} | {text.replace('*', '&#42;')} |"


def _metavar(parameter: Any) -> str:
    return str(parameter.metavar or parameter.name.upper())
