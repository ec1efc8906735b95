from pathlib import Path

from targets import Target


def build_shared_libraries(target: Target) -> Path:
    raise NotImplementedError
