"""Settings that pyproject.toml cannot express: README with links that lead to the repository as the long description,
and the thread pool, compiled for the platform of the wheel."""

import re
import sys
from pathlib import Path

from setuptools import Distribution, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_py import build_py

sys.path.insert(0, str(Path(__file__).parent))
from compiler.runtime.thread_pool import build_pool

REPOSITORY = "https://github.com/tensorwright/tensorwright"


def long_description() -> str:
    """README; links to pages and pictures of the repository are absolute, so that they work on a package index."""
    readme = (Path(__file__).parent / "README.md").read_text(encoding="utf-8")
    readme = re.sub(r"!\[([^\]]*)\]\((?!\w+:|#)([^)]+)\)", rf"![\1]({REPOSITORY}/raw/main/\2)", readme)
    return re.sub(r"(?<!!)\[([^\]]*)\]\((?!\w+:|#)([^)]+)\)", rf"[\1]({REPOSITORY}/blob/main/\2)", readme)


class BuildPackages(build_py):
    """The packages, with the thread pool; a checkout that is installed in place compiles that when it runs."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            build_pool(Path(self.build_lib) / "compiler" / "runtime")


class PlatformDistribution(Distribution):
    """The thread pool makes it one for a platform."""

    def has_ext_modules(self) -> bool:
        return True


class AnyPythonWheel(bdist_wheel):
    """A wheel of this platform, for any Python 3: the library is no extension module."""

    def get_tag(self) -> tuple[str, str, str]:
        return "py3", "none", super().get_tag()[2]


if __name__ == "__main__":
    setup(
        long_description=long_description(),
        long_description_content_type="text/markdown",
        cmdclass={"build_py": BuildPackages, "bdist_wheel": AnyPythonWheel},
        distclass=PlatformDistribution,
    )
