from __future__ import annotations

import pytest

from compiler.support.formula import evaluate, names_in, nominal_size, with_names


@pytest.mark.parametrize(
    ("formula", "sizes", "value"),
    [
        ("42", {}, 42),
        ("2*batch*(seq + 1)", {"batch": 3, "seq": 7}, 48),
        ("(n // 4)*min(n, 8) - max(1, n % 3)", {"n": 10}, 2 * 8 - 1),
        ("-n", {"n": 5}, -5),
    ],
)
def test_evaluates(formula: str, sizes: dict[str, int], value: int) -> None:
    assert evaluate(formula, sizes) == value


@pytest.mark.parametrize(
    "formula",
    ["", "1 +", "n", "1 // 0", "2.5", "True", "__import__('os')", "n.real", "min()", "2 ** 99", "abs(1)", "(" * 500],
)
def test_refuses_everything_else(formula: str) -> None:
    with pytest.raises(ValueError, match=r"formula|size of|divides by zero"):
        evaluate(formula, {})


@pytest.mark.parametrize(("formula", "size"), [("2*n + m", 1), ("n // (m // 3)", 4), ("n % (m - 1)", 2), ("12", 1)])
def test_nominal_size_is_the_least_that_has_a_value(formula: str, size: int) -> None:
    assert nominal_size(formula) == size


def test_names() -> None:
    assert names_in("2*batch*min(seq, 4)") == {"batch", "seq"}
    with pytest.raises(ValueError, match="not a formula"):
        names_in("2 *")


def test_names_of_a_formula_are_replaced() -> None:
    texts = {"n": "8", "größe": "w", "n1": "n1", "min": "wrong"}
    assert with_names("2*n + min(größe, n1)", texts.__getitem__) == "2*8 + min(w, n1)"
