"""Results and arguments of models: names of nested results, caches, dataclasses, keyword arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch._higher_order_ops.scan import scan
from torch.export import Dim

import compiler
from compiler.errors import InputError, InvalidModelError
from compiler.frontends.source import import_model


@dataclass
class Heads:
    logits: Tensor
    states: tuple[Tensor, ...]
    absent: Tensor | None = None


class Point(NamedTuple):
    x: Tensor
    y: Tensor


class Layer:
    """Like a layer of transformers' DynamicCache: two tensors and other fields."""

    __module__ = "transformers.cache_utils"

    def __init__(self, keys: Tensor) -> None:
        self.dtype, self.is_initialized = keys.dtype, True
        self.keys, self.values = keys, 2 * keys


class Cache:
    __module__ = "transformers.cache_utils"

    def __init__(self, *layers: Layer) -> None:
        self.layers, self.offloading = list(layers), False


class OtherCache(Cache):
    __module__ = "transformers.cache_utils"


class Returning(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, x: Tensor, scale: Tensor) -> Any:
        y = x * scale
        results: dict[str, Any] = {
            "dataclass": Heads(y, (y + 1, y + 2)),
            "dictionary": {"point": Point(y, y + 1), "logits": y + 2},
            "cache": {"logits": y, "past": Cache(Layer(y + 1), Layer(y + 2))},
            "tuples": (y, (y + 1, [y + 2])),
            "mixed": (y, {"logits": y + 1}),
            "complex": {"wave": torch.complex(y, -y), "real": y},
            "unknown": {"logits": y, "other": object()},
            "numbers": {"logits": y, "classes": 4, "scale": (2.5, None), "is_final": True},
            "text": (y, {"name": "small"}),
        }
        return results[self.kind]


_ARGUMENTS = {"scale": torch.tensor(3.0), "x": torch.arange(4.0)}
_NAMES = {
    "dataclass": ["logits", "states_0", "states_1"],
    "dictionary": ["point_x", "point_y", "logits"],
    "cache": ["logits", "past_0_keys", "past_0_values", "past_1_keys", "past_1_values"],
    "tuples": ["output_0", "output_1", "output_2"],
    "mixed": ["output_0", "output_1_logits"],
}


@pytest.mark.parametrize("kind", _NAMES)
def test_names_of_results(kind: str) -> None:
    model = import_model(Returning(kind).eval(), example_inputs=_ARGUMENTS)
    assert [each.name for each in model.outputs] == _NAMES[kind]


def test_values_of_a_cache_and_inputs_by_name() -> None:
    net = Returning("cache").eval()
    module = compiler.compile(net, example_inputs=_ARGUMENTS, threads=1)
    found = module.run({name: value.numpy() for name, value in _ARGUMENTS.items()})
    y = 3 * np.arange(4.0, dtype=np.float32)
    for name, wanted in zip(_NAMES["cache"], [y, y + 1, 2 * (y + 1), y + 2, 2 * (y + 2)], strict=True):
        np.testing.assert_array_equal(found[name], wanted)
    assert isinstance(net(**_ARGUMENTS)["past"], Cache)  # the caller's model is as it was


def test_an_exported_program_keeps_the_names_of_its_structure() -> None:
    program = torch.export.export(Returning("dictionary").eval(), (), _ARGUMENTS)
    assert [each.name for each in import_model(program).outputs] == _NAMES["dictionary"]


def test_an_object_without_tensors_is_named() -> None:
    with pytest.raises(InvalidModelError, match=r"returns an object as 'other'(?s:.*)use_cache=False"):
        import_model(Returning("unknown").eval(), example_inputs=_ARGUMENTS)


def test_numbers_are_tensors() -> None:
    module = compiler.compile(Returning("numbers").eval(), example_inputs=_ARGUMENTS, threads=1)
    found = module.run({name: value.numpy() for name, value in _ARGUMENTS.items()})
    del found["logits"]
    numbers = {name: (value.dtype.name, value[()]) for name, value in found.items()}
    assert numbers == {"classes": ("int64", 4), "scale_0": ("float32", 2.5), "is_final": ("bool", True)}


def test_text_is_refused() -> None:
    with pytest.raises(InvalidModelError, match=r"returns the text 'small' as '1\.name'"):
        import_model(Returning("text").eval(), example_inputs=_ARGUMENTS)


def test_complex_numbers_are_pairs_and_a_note_says_so() -> None:
    model = import_model(Returning("complex").eval(), example_inputs=_ARGUMENTS)
    assert [each.shape for each in model.outputs] == [(4, 2), (4,)]
    assert len(model.notes) == 1
    assert "'wave': complex numbers are pairs" in model.notes[0]


class DynamicLayer(Layer):
    """Like transformers' layer of this name, which grows."""

    __module__ = "transformers.cache_utils"


class Remembering(nn.Module):
    def forward(self, x: Tensor, cache: Cache) -> Any:
        for layer in cache.layers:
            layer.keys, layer.values = torch.cat([layer.keys, x], 1), torch.cat([layer.values, -x], 1)
        return {"y": x @ cache.layers[0].keys.mT @ cache.layers[1].values, "cache": cache}


def test_a_cache_as_an_input_of_dynamic_length() -> None:
    dynamic = {"x": {1: torch.export.Dim.AUTO}, "cache": [{1: torch.export.Dim.AUTO}] * 4}
    example = {"x": torch.randn(2, 3, 4), "cache": Cache(*(DynamicLayer(torch.randn(2, 5, 4)) for _ in range(2)))}
    net = Remembering().eval()
    module = compiler.compile(net, example_inputs=example, dynamic_shapes=dynamic, threads=1)
    x, layers = torch.randn(2, 1, 4), [DynamicLayer(torch.randn(2, 7, 4)) for _ in range(2)]
    given = {
        f"cache_{index}_{part}": getattr(each, part) for index, each in enumerate(layers) for part in ("keys", "values")
    }
    found = module.run({"x": x.numpy(), **{name: each.numpy() for name, each in given.items()}})
    wanted = net(x, Cache(*layers))
    np.testing.assert_allclose(found["y"], wanted["y"].numpy(), rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(found["cache_1_values_out"], layers[1].values.numpy())


def test_a_cache_that_holds_more_than_keys_and_values_is_refused() -> None:
    with pytest.raises(InputError, match="layer 0 of the OtherCache among the example inputs is a Layer"):
        import_model(Remembering().eval(), example_inputs=(torch.ones(1, 1, 4), OtherCache(Layer(torch.ones(1, 2, 4)))))


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = torch.cond(x.sum() > 0, lambda y: torch.fmax(y, 3 - y), lambda y: y.hypot(y + 1), (x,))
        return result


def test_operators_inside_of_branches_are_decomposed_too() -> None:
    x = torch.arange(12.0).reshape(4, 3)
    module = compiler.compile(Branching().eval(), example_inputs=(x,), threads=1)
    for each in (x, -x):
        np.testing.assert_allclose(module.run([each])["output_0"], Branching()(each).numpy(), rtol=1e-5, atol=1e-5)


class BestPath(nn.Module):
    """Scores of the best path of a chain to each label, and those of all its steps."""

    def __init__(self) -> None:
        super().__init__()
        self.transitions = nn.Parameter(torch.randn(5, 5))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        def step(best: Tensor, scores: Tensor) -> tuple[Tensor, Tensor]:
            best = (best[:, :, None] + self.transitions).amax(1) + scores
            return best, best.clone()

        result: tuple[Tensor, Tensor] = scan(step, x[0] * 1, x)
        return result


def test_scans_of_a_dynamic_batch_and_length() -> None:
    net, dynamic = BestPath().eval(), {0: Dim("length"), 1: Dim("batch")}
    module = compiler.compile(net, example_inputs=(torch.randn(7, 3, 5),), dynamic_shapes={"x": dynamic}, threads=1)
    for length, batch in ((7, 3), (2, 6), (11, 1)):
        x = torch.randn(length, batch, 5)
        for found, expected in zip(module.run([x]).values(), net(x), strict=True):
            np.testing.assert_allclose(found, expected.detach().numpy(), rtol=1e-6, atol=1e-6)


class ReturningInputs(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, ...]:
        total = x + y
        return total, x, total, x


def test_inputs_and_values_that_are_returned_twice() -> None:
    arrays = np.arange(3, dtype=np.float32), np.full(3, 2, dtype=np.float32)
    module = compiler.compile(ReturningInputs().eval(), example_inputs=tuple(map(torch.from_numpy, arrays)), threads=1)
    assert [each.name for each in module.inputs] == ["x", "y"]
    total = arrays[0] + arrays[1]
    results = module(*arrays)
    assert isinstance(results, dict)
    for found, expected in zip(results.values(), (total, arrays[0], total, arrays[0]), strict=True):
        np.testing.assert_array_equal(found, expected)
