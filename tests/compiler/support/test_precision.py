"""All options use one set of type names."""

from __future__ import annotations

import pytest

from compiler.compression.quantization.settings import QuantizationOptions
from compiler.errors import OptionError
from compiler.frontends.llm.options import LanguageModelOptions
from compiler.searching.settings import Space
from compiler.support.precision import precision_of


@pytest.mark.parametrize("name", ["bf16", "bfloat16"])
def test_every_option_takes_the_names_of_a_type(name: str) -> None:
    assert precision_of(name) == "bf16"
    assert LanguageModelOptions(name, cache=name).precision == "bfloat16"
    assert QuantizationOptions(scheme=name).scheme == "bfloat16"
    assert "bf16" in Space(precision=(name,)).precision


def test_integers_have_short_names_too() -> None:
    assert LanguageModelOptions("q4").precision == "int4"
    assert QuantizationOptions(scheme="q4").scheme == "weight-int4"
    assert QuantizationOptions(scheme="int8").scheme == "static-int8"
    with pytest.raises(OptionError, match="quantize"):
        precision_of("q4")
