"""Settings of the tests of targets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NoReturn

import pytest

from compiler.errors import InputError


@pytest.fixture(scope="module", autouse=True)
def no_reference_runs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Modules for other machines without stored reference results, which `compile` computes by building the model for
    this machine too; a file whose tests verify modules sets KEEPS_REFERENCES."""

    def declined(*_: object) -> NoReturn:
        raise InputError("these tests compute what they expect")

    with pytest.MonkeyPatch.context() as patch:
        if not getattr(request.module, "KEEPS_REFERENCES", False):
            patch.setattr("compiler.driver.build._host_module", declined)
        yield
