"""`torch.compile(model, backend="tensorwright")` against eager torch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv, StatelessSymbolicContext

import compiler
from compiler.errors import OptionError
from compiler.runtime import Module
from compiler.torch_backend import tensorwright_backend


@pytest.fixture(autouse=True)
def fresh_dynamo() -> Iterator[None]:
    torch.manual_seed(0)
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.LayerNorm(16), nn.Linear(16, 3)).eval()


def test_backend_is_found_by_name() -> None:
    assert "tensorwright" in torch._dynamo.list_backends()


def test_module_equals_eager_at_several_sizes() -> None:
    model = network()
    compiled = torch.compile(model, backend="tensorwright")
    with torch.no_grad():
        for batch in (1, 4, 7):
            x = torch.randn(batch, 6)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_floats_of_modules_are_constants_where_sizes_are_dynamic_from_the_first_call() -> None:
    model = network()
    compiled = torch.compile(model, backend="tensorwright", dynamic=True)
    with torch.no_grad():
        for batch in (2, 5):
            x = torch.randn(batch, 6)
            torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_changed_parameters_are_seen() -> None:
    model = network()
    compiled = torch.compile(model, backend="tensorwright")
    x = torch.randn(2, 6)
    with torch.no_grad():
        compiled(x)
        for parameter in model.parameters():
            parameter.mul_(0.5)
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-4, atol=1e-5)


def test_function_with_several_outputs_and_a_number() -> None:
    def function(x: torch.Tensor, scale: float) -> tuple[torch.Tensor, torch.Tensor]:
        return x * scale, x.softmax(dim=-1)

    compiled = torch.compile(function, backend="tensorwright")
    x = torch.randn(3, 5)
    for scale in (2.0, 3.0):
        torch.testing.assert_close(compiled(x, scale), function(x, scale), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cache", [None, "static"])
def test_generation_compiles_prompt_and_step(cache: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=100,
        eos_token_id=None,
        pad_token_id=0,
    )
    model = transformers.LlamaForCausalLM(config).eval()
    options: dict[str, Any] = {"max_new_tokens": 12, "do_sample": False, "cache_implementation": cache}
    prompt = torch.randint(1, 100, (1, 5))
    expected = model.generate(prompt, **options).tolist()
    compiled = []

    def counted(source: object, **options: Any) -> Module:
        compiled.append(compile_one(source, **options))
        return compiled[-1]

    compile_one = compiler.compile
    monkeypatch.setattr(compiler, "compile", counted)
    model.forward = torch.compile(model.forward, backend="tensorwright")
    assert model.generate(prompt, **options).tolist() == expected
    assert len(compiled) == 2
    assert model.generate(prompt, **options).tolist() == expected  # the caches of the first are not those of the second
    assert len(compiled) == 2


ONE_BY_ONE = "once for each combination of sizes"


def test_dynamic_sizes_that_cannot_be_compiled_are_compiled_one_by_one() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = x + 1
        y[:, 1:-1:3].mul_(3)
        return y

    compiled = torch.compile(function, backend="tensorwright", dynamic=True)
    x = torch.randn(6, 5)
    with pytest.warns(UserWarning, match=ONE_BY_ONE):
        torch.testing.assert_close(compiled(x), function(x))
    torch.testing.assert_close(compiled(x[:5]), function(x[:5]))


def test_dynamic_sizes_that_the_compiled_module_fixes_are_compiled_one_by_one() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        return torch.unbind(x, 1)[1] * 2

    x = torch.randn(4, 3)
    graph = torch.fx.symbolic_trace(function)
    sizes: StatelessSymbolicContext[Any, Any] = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC] * 2)
    fake = FakeTensorMode(shape_env=ShapeEnv()).from_tensor(x, symbolic_context=sizes)
    next(iter(graph.graph.nodes)).meta["example_value"] = fake
    compiled = tensorwright_backend(graph, [x])
    torch.testing.assert_close(compiled(x)[0], function(x))
    torch.testing.assert_close(compiled(x[:2])[0], function(x[:2]))
    wider = torch.randn(4, 5)
    with pytest.warns(UserWarning, match=ONE_BY_ONE):
        torch.testing.assert_close(compiled(wider)[0], function(wider))


def test_inputs_are_written_in_place() -> None:
    def function(x: torch.Tensor, total: torch.Tensor, half: torch.Tensor) -> torch.Tensor:
        total.add_(x)
        half[1:].mul_(2)
        return total * 3

    compiled = torch.compile(function, backend="tensorwright")
    x, total, strided = torch.randn(3, 5), torch.randn(3, 5), torch.randn(4, 6)[:, 1:4].to(torch.bfloat16)
    expected_total, expected_strided = total.clone(), strided.clone()
    for _ in range(2):
        expected = function(x, expected_total, expected_strided)
        torch.testing.assert_close(compiled(x, total, strided), expected)
        torch.testing.assert_close(total, expected_total)
        torch.testing.assert_close(strided, expected_strided)


def test_recording_gradients_is_refused() -> None:
    model = network()
    compiled = torch.compile(model, backend="tensorwright")
    with pytest.raises(OptionError, match="no_grad"):
        compiled(torch.randn(1, 6))


def test_options_reach_the_compiler() -> None:
    compiled = torch.compile(network(), backend="tensorwright", options={"target": "x86-64-v9"})
    with torch.no_grad(), pytest.raises(Exception, match="x86-64-v9"):
        compiled(torch.randn(1, 6))
