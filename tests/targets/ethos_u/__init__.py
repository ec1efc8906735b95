"""The Ethos-U target. Needs the extra `ethos-u`: without it these tests skip."""

import pytest

pytest.importorskip("ethosu.vela")
pytest.importorskip("tosa_reference_model")
