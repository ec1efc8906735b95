"""The first step of reading a module, without NumPy: its digests are computed while what uses it is being imported."""

from __future__ import annotations

import os
from dataclasses import dataclass

from compiler.artifact.checked_files import CheckedFile, file_state
from compiler.artifact.container import Layout, parse_head
from compiler.artifact.digest import TreeDigests, begin_digests
from compiler.artifact.storage import read_mapped, read_private

Source = str | os.PathLike[str] | bytes | bytearray | memoryview


@dataclass(frozen=True)
class OpenedModule:
    """The bytes of a module whose head is checked.

    Attributes:
        data: the whole file.
        origin: what errors call it.
        layout: where its sections are.
        digests: those of the sections, in order, which other threads compute; None for a file that was checked before.
        file: to remember that they are right; None for bytes, and for files in private memory.
    """

    data: memoryview
    origin: str
    layout: Layout
    digests: TreeDigests | None
    file: CheckedFile | None = None

    def section(self, index: int) -> memoryview:
        """The bytes of a section, unchecked."""
        return _section(self.data, self.layout, index)


def open_module(source: Source, *, private: bool = False) -> OpenedModule:
    """Map a file, check its head, and begin to compute the digests of its sections.

    Args:
        source: a path, or the bytes of such a file.
        private: read the file into memory of this process in place of mapping it.

    Raises:
        StorageError: the file cannot be read.
        ArtifactError: it is not a module, truncated, or its head is damaged.
        IncompatibleArtifactError: it has a newer format version.
    """
    if isinstance(source, bytes | bytearray | memoryview):
        # A copy, unless it cannot change: what was checked must stay what it is.
        data, origin = memoryview(source if isinstance(source, bytes) else bytes(source)), "the module"
        layout, file = parse_head(data, origin), None
    else:
        origin, state = str(source), file_state(source)
        data = read_private(source) if private else read_mapped(source)
        layout = parse_head(data, origin)
        file = None if private else CheckedFile.of(source, state, layout.digest)
    if file is not None and file.is_known():
        return OpenedModule(data, origin, layout, None)
    sections = [[_section(data, layout, index)] for index in range(len(layout.sections))]
    return OpenedModule(data, origin, layout, begin_digests(sections, os.cpu_count() or 1), file)


def _section(data: memoryview, layout: Layout, index: int) -> memoryview:
    section = layout.sections[index]
    return data[section.offset : section.offset + section.size]
