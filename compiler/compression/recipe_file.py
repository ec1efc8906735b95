"""Reading a recipe from a YAML file, whatever the file holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from compiler.errors import OptionError, StorageError

_LONGEST = 1 << 16  # characters


def read_recipe(path: Path) -> Any:
    """What the file holds, as Python's own types.

    Raises:
        StorageError: it cannot be read.
        OptionError: it is not YAML, refers to itself, names a key twice, or is too large.
    """
    try:
        text = path.read_text(encoding="utf-8")
        if len(text) > _LONGEST:
            raise OptionError(f"{path} has {len(text)} characters", f"a recipe has at most {_LONGEST}")
        # References to other parts can stand for more than any memory holds.
        if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader)):
            raise OptionError(f"{path} refers to parts of itself (*name)", "write the settings of each step out")
        for name, first, second in _repeated_keys(yaml.compose(text, yaml.SafeLoader)):
            raise OptionError(
                f"{path} has {name!r} in line {first} and again in line {second}",
                "keep one: a step that is done twice is two entries of the list",
            )
        return yaml.safe_load(text)
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error}") from error
    except RecursionError as error:
        raise OptionError(f"{path} is nested too deeply", "compress: [prune: {amount: 0.5}, quantize]") from error
    except (yaml.YAMLError, ValueError) as error:  # not UTF-8, or a number of thousands of digits
        raise OptionError(f"{path} cannot be read as YAML: {error}") from error


def _repeated_keys(node: yaml.Node | None) -> Iterator[tuple[str, int, int]]:
    """(key, line, line of its repetition) of mappings; YAML readers silently keep the last one."""
    if isinstance(node, yaml.MappingNode):
        lines: dict[tuple[str, str], int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in lines:
                    yield key.value, lines[key.tag, key.value], line
                lines[key.tag, key.value] = line
            yield from _repeated_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for each in node.value:
            yield from _repeated_keys(each)
