"""The pip command that installs an optional extra."""

from __future__ import annotations

import re
from functools import cache
from importlib import metadata

_REQUIREMENT = re.compile(r"""(?P<package>[^;]+);.*\bextra == ['"](?P<extra>[\w-]+)['"]""")


@cache
def install_command(extra: str) -> str:
    """`pip install` with the packages of an extra by name, for any installation; in a checkout that is not installed,
    with
    the extra itself."""
    try:
        listed = metadata.requires("tensorwright") or []
    except metadata.PackageNotFoundError:
        return f"pip install '.[{extra}]' in the checkout"
    matches = (_REQUIREMENT.fullmatch(each) for each in listed)
    packages = [match["package"].strip() for match in matches if match is not None and match["extra"] == extra]
    return " ".join(["pip install", *(f"'{each}'" for each in packages)])
