"""The long description of the package: README with links that lead to the repository. All else is in pyproject.toml."""

import re
from pathlib import Path

from setuptools import setup

REPOSITORY = "https://github.com/tensorwright/tensorwright"


def long_description() -> str:
    """README; links to pages and pictures of the repository are absolute, so that they work on a package index."""
    readme = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    readme = re.sub(r"!\[([^\]]*)\]\((?!\w+:|#)([^)]+)\)", rf"![\1]({REPOSITORY}/raw/main/\2)", readme)
    return re.sub(r"(?<!!)\[([^\]]*)\]\((?!\w+:|#)([^)]+)\)", rf"[\1]({REPOSITORY}/blob/main/\2)", readme)


if __name__ == "__main__":
    setup(long_description=long_description(), long_description_content_type="text/markdown")
