"""Hooks of mkdocs: the page of the command line, written from the commands, and links out of `docs/`."""

from __future__ import annotations

import posixpath
import re
from typing import Any

from mkdocs.structure.files import File

COMMAND_LINE = "reference/command_line.md"
_LINK = re.compile(r"\]\((\.\./[^)\s]+)\)")


def on_files(files: Any, config: Any) -> Any:
    """Add the generated page."""
    from compiler.cli.reference import command_line_page

    files.append(File.generated(config, COMMAND_LINE, content=command_line_page()))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Links to files beside `docs/` (examples, SECURITY.md) lead to the repository on the web."""
    folder = posixpath.join("docs", posixpath.dirname(page.file.src_uri))

    def rewritten(match: re.Match[str]) -> str:
        path = posixpath.normpath(posixpath.join(folder, match[1]))
        return match[0] if path.startswith("docs/") else f"]({config.repo_url.rstrip('/')}/blob/main/{path})"

    return _LINK.sub(rewritten, markdown)
