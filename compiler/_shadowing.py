"""`schedules` and `targets` are common names: say which file is in the way when another module shadows ours."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

_SIBLINGS = ("schedules", "targets", "tuning_logs")


def check_sibling_packages() -> None:
    """Raise ImportError naming the file, when `schedules`, `targets` or `tuning_logs` is not Tensorwright's own."""
    root = Path(__file__).resolve().parent.parent
    for name in _SIBLINGS:
        expected = root / name / "__init__.py"
        spec = find_spec(name)
        found = Path(spec.origin).resolve() if spec is not None and spec.origin is not None else None
        if found != expected:
            where = f"is shadowed by {found}" if found else "was not found"
            raise ImportError(
                f"Tensorwright's package {name!r} (expected at {expected}) {where}. "
                f"Rename that module, or take its folder off sys.path."
            )
