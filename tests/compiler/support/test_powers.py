from __future__ import annotations

import pytest

from compiler.support.powers import by_squaring


@pytest.mark.parametrize("exponent", range(1, 40))
def test_a_power_takes_few_products(exponent: int) -> None:
    products = []

    def multiply(a: int, b: int) -> int:
        products.append((a, b))
        return a * b

    assert by_squaring(3, exponent, multiply) == 3**exponent
    assert len(products) == exponent.bit_length() - 1 + exponent.bit_count() - 1
