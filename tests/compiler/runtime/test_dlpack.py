"""Tensors of other frameworks are exchanged without a copy where their memory allows it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from compiler.errors import InputError
from compiler.runtime import Module
from compiler.runtime.executor import LocalExecutor
from tests.compiler.runtime.building import elementwise_artifact, pair_artifact

torch = pytest.importorskip("torch")


@pytest.fixture(scope="module")
def pair() -> Module:
    return Module(pair_artifact())


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16", "int64", "uint8"])
def test_both_ways(dtype: str) -> None:
    module = Module(elementwise_artifact(dtype))
    x = torch.arange(12).reshape(4, 3).to(getattr(torch, dtype))
    y = torch.from_dlpack(module.run({"x": x}, outputs="dlpack")["y"])
    assert y.dtype == x.dtype
    assert torch.equal(y, x + x)


def test_nothing_is_copied_on_the_way_in(pair: Module) -> None:
    x = torch.ones(1000, 4)
    assert x.data_ptr() % 64 == 0
    executor = pair._executor
    assert isinstance(executor, LocalExecutor)
    tensors = executor._binder.bind([x, x], executor._idle[-1].memory)
    assert [tensor.data_ptr() for tensor in tensors] == [x.data_ptr()] * 2


def test_nothing_is_copied_on_the_way_out(pair: Module) -> None:
    x = torch.ones(1000, 4)
    result = pair.run([x, x], outputs="dlpack")["sum"]
    assert torch.from_dlpack(result).data_ptr() == result.data_ptr()


@pytest.mark.parametrize(
    "arrange",
    [
        lambda x: x.t().contiguous().t(),
        lambda x: x.repeat_interleave(2, dim=0)[::2],
        lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].reshape(x.shape),
        lambda x: x[:1].expand(x.shape),
        lambda x: x[:0],
    ],
    ids=["transposed", "strided", "misaligned", "expanded", "empty"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_arrangement_in_memory(dtype: str, arrange: Any) -> None:
    x = arrange(torch.arange(60).reshape(20, 3).to(getattr(torch, dtype)))
    y = torch.from_dlpack(Module(elementwise_artifact(dtype)).run([x], outputs="dlpack")["y"])
    assert torch.equal(y, x + x)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: torch.ones(2, 4).to_sparse(), "plain tensor"),
        (lambda: torch.ones(2, 4, device="meta"), "CPU|plain tensor"),
        (lambda: torch.ones(2, 4, dtype=torch.float64), "element type float64"),
        (lambda: torch.ones(2, 4, dtype=torch.complex64), "element type|plain tensor"),
        (lambda: torch.ones(2, 5), "dimension 1 is 5"),
        (lambda: torch.ones(4), "has rank 1"),
    ],
)
def test_what_can_not_be_taken(pair: Module, make: Any, message: str) -> None:
    good = torch.ones(2, 4)
    with pytest.raises(InputError, match=message):
        pair.run({"left": good, "right": make()})
    assert pair.run([good, good])["sum"].tolist() == [[2] * 4] * 2


def test_lazy_negation_and_gradients(pair: Module) -> None:
    ones = torch.ones(2, 4)
    negated = torch.view_as_complex(torch.ones(2, 4, 2)).conj().imag
    assert negated.is_neg()
    result = pair.run([ones, negated.requires_grad_()], outputs="dlpack")
    assert torch.from_dlpack(result["sum"]).tolist() == [[0] * 4] * 2


def test_other_peoples_broken_tensors(pair: Module) -> None:
    class Broken:
        def __dlpack_device__(self) -> tuple[int, int]:
            return (1, 0)

        def __dlpack__(self, **_: Any) -> Any:
            raise RuntimeError("no")

    class Elsewhere(Broken):
        def __dlpack_device__(self) -> tuple[int, int]:
            return (2, 0)

    with pytest.raises(InputError, match="cannot be imported by DLPack: no"):
        pair.run([Broken(), Broken()])
    with pytest.raises(InputError, match="another device"):
        pair.run([Elsewhere(), Elsewhere()])


def test_tensors_outlive_the_module() -> None:
    x = np.ones((30, 3), np.float32)
    y = Module(elementwise_artifact("float32")).run([x], outputs="dlpack")["y"]
    z = Module(elementwise_artifact("float32")).run([x])["y"]
    assert torch.from_dlpack(y).sum() == 180
    assert z.sum() == 180
