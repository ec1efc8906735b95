"""Capturing modules: integers in buffers, scans of transformers, branches on sizes."""

from __future__ import annotations

import contextlib
import operator
import sys
import types
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import compiler
from compiler.artifact import TensorDescription
from compiler.driver.manifest_entries import requirements
from compiler.errors import InputError, InvalidModelError, UnsupportedModelError
from compiler.frontends.source import import_model
from compiler.runtime.inputs import RequirementChecker

_LENGTH = ({2: torch.export.Dim.DYNAMIC},)


class Padded(nn.Module):
    """A convolution as in EnCodec: the padding is computed from buffers."""

    def __init__(self, *, counting: bool = False) -> None:
        super().__init__()
        self.kernel = nn.Buffer(torch.tensor(5), persistent=False)
        self.stride = nn.Buffer(torch.tensor(2), persistent=False)
        self.counting = counting

    def forward(self, x: Tensor) -> Tensor:
        if self.counting:
            self.stride.add_(1)
        frames = torch.ceil((x.shape[-1] - self.kernel) / self.stride).to(torch.int64)
        return nn.functional.pad(x, (1, frames * self.stride + self.kernel - x.shape[-1]))  # type: ignore[arg-type]


def test_sizes_computed_from_integers_in_buffers() -> None:
    net, x = Padded().eval(), torch.randn(1, 2, 8)
    model = import_model(net, example_inputs=(x,))
    assert model.outputs[0].shape == tuple(net(x).shape) == (1, 2, 10)
    assert isinstance(net.kernel, nn.Buffer)


def test_integers_that_the_model_changes_are_states() -> None:
    net, x = Padded(counting=True).eval(), torch.randn(1, 2, 8)
    session = compiler.compile(net, example_inputs=(x,), threads=1, records=False).session()
    for _ in range(3):
        np.testing.assert_array_equal(session.run({"x": x.numpy()})["output_0"], net(x).numpy())


def loop_over_steps(hidden_states: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, **named: Any) -> Any:  # noqa: N803
    """transformers' selective scan without options."""
    dt = nn.functional.softplus(dt + named["delta_bias"][:, None])
    state, outputs = hidden_states.new_zeros(*hidden_states.shape[:2], A.shape[1]), []
    for index in range(hidden_states.shape[2]):
        step = dt[:, :, index, None]
        state = torch.exp(A * step) * state + step * B[:, None, :, index] * hidden_states[:, :, index, None]
        outputs.append((state @ C[:, :, index, None])[..., 0])
    result = torch.stack(outputs, -1) + named["D"][:, None] * hidden_states
    return result * nn.functional.silu(named["z"]), state


class Scanning(nn.Module):
    def __init__(self, module: types.ModuleType) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Any:
        rates, bias = -torch.arange(1.0, 5.0).expand(3, 4), torch.tensor([0.1, 0.2, 0.3])
        options = {"D": bias, "z": x.cos(), "delta_bias": bias, "delta_softplus": True, "return_last_state": True}
        scan = self.module.mamba_selective_scan
        return scan(x, x.sin(), rates, x.new_ones(2, 4, 1) * x[:, :1], x[:, 1:2] + x.new_zeros(2, 4, 1), **options)


def test_scans_of_transformers_at_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("transformers.models.invented")
    module.mamba_selective_scan = loop_over_steps  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    net = Scanning(module).eval()
    compiled = compiler.compile(net, example_inputs=(torch.randn(2, 3, 5),), dynamic_shapes=_LENGTH, threads=1)
    assert module.mamba_selective_scan is loop_over_steps
    for length in (5, 11, 1):
        x = torch.randn(2, 3, length)
        for found, wanted in zip(compiled.run([x]).values(), net(x), strict=True):
            np.testing.assert_allclose(found, wanted.numpy(), rtol=1e-4, atol=1e-5)


class Whole(nn.Module):
    """Adds the numbers of patches of 4 samples, of which `count` makes a number."""

    def __init__(self, count: Callable[[Any], Any]) -> None:
        super().__init__()
        self.count = count

    def forward(self, x: Tensor) -> Tensor:
        return x.sum() + torch.arange(self.count((x.shape[0] - 1) // 4 + 1))


def _whole(size: Any) -> int:
    return int(size) if isinstance(size, int) and int("2") == 2 else int(np.ceil(float(size) / 0.5) / 2)


def _of_a_type(size: Any) -> int:
    return int(size) + int(torch.zeros(1, dtype=int).shape[0] - 1)  # type: ignore[call-overload]


def test_python_numbers_of_sizes_stay_symbolic() -> None:
    net, multiple = Whole(_whole).eval(), ({0: 4 * torch.export.Dim("n", max=100)},)
    compiled = compiler.compile(net, example_inputs=(torch.randn(8),), dynamic_shapes=multiple, threads=1)
    for length in (8, 20, 4):
        x = torch.randn(length)
        np.testing.assert_allclose(compiled.run([x])["output_0"], net(x).numpy(), rtol=1e-5, atol=1e-6)


_SIZED_FUNCTIONS = """
import torch

def half(x):
    return x[:, : int(float(x.shape[1]) / 2)]

def middle(x):  # halves are rounded to the even neighbor
    first = int(round((x.shape[1] - 6) / 2.0))
    return x[:, first : first + 6] if first + 6 <= x.shape[1] else x[:, :6]
"""


def test_functions_of_packages_that_a_model_imports_keep_sizes_symbolic(monkeypatch: pytest.MonkeyPatch) -> None:
    package = types.ModuleType("sized_package")
    exec(_SIZED_FUNCTIONS, vars(package))
    monkeypatch.setitem(sys.modules, "sized_package", package)
    monkeypatch.setitem(globals(), "sized_package", package)

    class Halved(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            functions = globals()["sized_package"]
            return functions.half(x)[:, :3] + functions.middle(x)[:, 2:5]

    net, dynamic = Halved().eval(), ({1: torch.export.Dim.DYNAMIC},)
    compiled = compiler.compile(net, example_inputs=(torch.randn(2, 12),), dynamic_shapes=dynamic, threads=1)
    for length in (12, 7, 9, 11, 30):
        x = torch.randn(2, length)
        np.testing.assert_array_equal(compiled.run([x])["output_0"], net(x).numpy())


def test_models_that_need_the_builtin_types_are_captured_with_them() -> None:
    net, x = Whole(_of_a_type).eval(), torch.randn(8)
    static = compiler.compile(net, example_inputs=(x,), dynamic_shapes=({0: None},), threads=1)
    np.testing.assert_allclose(static.run([x])["output_0"], net(x).numpy(), rtol=1e-5, atol=1e-6)


def test_a_model_that_fixes_a_size_is_traced_once() -> None:
    traced = []

    class Fixed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            traced.append(int("0"))
            return x * operator.index(x.shape[0])

    with pytest.raises(InvalidModelError, match=r"specialized(?s:.*)leave the dimension out"):
        import_model(Fixed().eval(), example_inputs=(torch.randn(32),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},))
    assert len(traced) == 1


@pytest.mark.parametrize(
    "count", [operator.index, lambda size: (96 // (size - 3)).__index__()], ids=["size", "quotient"]
)
def test_a_multiple_of_which_the_model_makes_a_number_is_refused(count: Callable[[Any], int]) -> None:
    multiple = ({0: 4 * torch.export.Dim("n", min=5, max=100)},)
    with pytest.raises(UnsupportedModelError, match=r"dimension 0 of x(?s:.*)written for"):
        import_model(Whole(count).eval(), example_inputs=(torch.randn(32),), dynamic_shapes=multiple)


class Positions(nn.Module):
    """Positions of 16 patches, which are repeated for another number of them."""

    def forward(self, x: Tensor) -> Tensor:
        patches = x.shape[0] // 4
        return x.mean() + (torch.arange(16) if patches == 16 else torch.arange(patches) * 2)


def test_a_branch_that_few_neighbouring_sizes_take_is_refused() -> None:
    dynamic = ({0: torch.export.Dim.DYNAMIC},)
    with pytest.raises(UnsupportedModelError, match=r"dimension 0 of x(?s:.*)4\) = 16(?s:.*)an example"):
        import_model(Positions().eval(), example_inputs=(torch.randn(66),), dynamic_shapes=dynamic)
    import_model(Positions().eval(), example_inputs=(torch.randn(40),), dynamic_shapes=dynamic)


class Areas(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape
        return x * x.new_tensor([(height // 2) * (width // 2) * 1.0])


def test_an_area_that_a_function_of_torch_reads_as_a_number_fixes_both_sizes() -> None:
    dynamic = ({0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC},)
    program = torch.export.export(Areas().eval(), (torch.randn(4, 12),), dynamic_shapes=dynamic)
    with pytest.raises(UnsupportedModelError, match=r"dimension 0 of x(?s:.*)dimension 1 of x"):
        import_model(program)


class Branching(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        size: int = x.shape[0]
        result = x[-4:] * 2 if size >= 4 else x.sum(0)
        if size == 9:
            result = result + 1
        return result + y.sum() if size > y.shape[0] else result


def test_sizes_that_take_another_branch_are_refused_when_running() -> None:
    dynamic = ({0: torch.export.Dim.DYNAMIC}, {0: torch.export.Dim.DYNAMIC})
    inputs = (torch.randn(7, 3), torch.randn(5))
    module = compiler.compile(Branching().eval(), example_inputs=inputs, dynamic_shapes=dynamic, threads=1)
    for sizes in ((7, 5), (4, 2), (10, 9)):
        x, y = torch.randn(sizes[0], 3), torch.randn(sizes[1])
        np.testing.assert_allclose(module.run([x, y])["output_0"], Branching()(x, y).numpy(), rtol=1e-5, atol=1e-5)
    for sizes in ((3, 2), (9, 2), (5, 5)):
        with pytest.raises(InputError, match=r"a branch of the model \(test_capture\.py:"):
            module.run([torch.randn(sizes[0], 3), torch.randn(sizes[1])])


class Alternatives(nn.Module):
    """Branches on an area, on a quotient, and on either of two sizes."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape
        result = x * 2 if height * width % 4 == 0 else x
        result = result + 1 if height / 2 > 1.5 else result
        longest: int = torch.sym_max(height, width)  # type: ignore[no-untyped-call]
        return result - 3 if longest <= 6 else result


@pytest.mark.parametrize(
    ("shape", "same"), [((4, 5), True), ((6, 6), True), ((5, 5), False), ((8, 4), False), ((3, 4), False)]
)
def test_conditions_on_areas_and_quotients_are_required(shape: tuple[int, int], same: bool) -> None:
    size = torch.export.Dim.DYNAMIC
    model = import_model(
        Alternatives().eval(), example_inputs=(torch.randn(4, 6),), dynamic_shapes=({0: size, 1: size},)
    )
    inputs = [TensorDescription(name=each.name, shape=each.shape, dtype=each.dtype) for each in model.inputs]
    checker = RequirementChecker(inputs, **requirements(model))
    with contextlib.nullcontext() if same else pytest.raises(InputError, match="a branch of the model"):
        checker.check(dict(zip(map(str, model.inputs[0].shape), shape, strict=True)), [None])


class Scaled(nn.Module):
    """A branch that is rounded like floating-point numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if x.shape[0] * 0.3 > 2 else x


def test_a_branch_that_no_formula_states_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match="a branch of the model"):
        import_model(
            Scaled().eval(), example_inputs=(torch.randn(7, 2),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
        )


class Halves(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        first, second = x.chunk(2, 2)
        return torch.cat([second, 2 * first], 2)


def test_parts_of_a_dynamic_size() -> None:
    module = compiler.compile(
        Halves().eval(), example_inputs=(torch.randn(1, 2, 7),), dynamic_shapes=_LENGTH, threads=1
    )
    for length in (7, 8, 5):
        x = torch.randn(1, 2, length)
        np.testing.assert_array_equal(module.run([x])["output_0"], Halves()(x).numpy())


class Looping(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return sum((x[index] for index in range(x.shape[0])), x[0])


def test_a_loop_over_a_dynamic_dimension_is_named_with_the_way_out() -> None:
    with pytest.raises(InvalidModelError, match=r"Python loop(?s:.*)scan"):
        import_model(
            Looping().eval(), example_inputs=(torch.ones(3, 2),), dynamic_shapes=({0: torch.export.Dim.DYNAMIC},)
        )


class Difference(torch.nn.Module):
    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x - y


def test_a_tensor_given_twice_is_two_inputs() -> None:
    example = torch.zeros(2, 3)
    module = compiler.compile(Difference().eval(), example_inputs=(example, example))
    x, y = (np.random.default_rng(seed).standard_normal((2, 3)).astype(np.float32) for seed in (0, 1))
    np.testing.assert_array_equal(module.run({"x": x, "y": y})["output_0"], x - y)


class Joined(torch.nn.Module):
    """A size from a buffer, and a concatenation that is written to."""

    def __init__(self) -> None:
        super().__init__()
        self.width = nn.Buffer(torch.tensor(2), persistent=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        joined = torch.cat([x, x[:, : int(self.width)]], 1)
        joined += 1
        return joined if joined.shape[1] > int(self.width) else x


def test_sizes_from_buffers_beside_writes_to_other_tensors() -> None:
    x = torch.randn(3, 5)
    module = compiler.compile(Joined().eval(), example_inputs=(x,), threads=1)
    np.testing.assert_allclose(module.run({"x": x.numpy()})["output_0"], Joined()(x).numpy(), rtol=1e-6)
