"""LoRA adapters of peft, merged into the weights of their base."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import save_file

import compiler
from compiler.errors import InvalidModelError, OptionError, StorageError
from compiler.frontends.llm import LanguageModelOptions, import_language_model
from compiler.frontends.llm.adapters import AdaptedReader, Adapter
from compiler.frontends.llm.safetensors_folder import SafetensorsFolder
from compiler.generation import LanguageModel, Scheduler
from compiler.serving.configuration import model_options
from tests.compiler.frontends.llm.families import greedy, save_model
from tests.compiler.frontends.llm.quantized_folders import kinds, write_quantized
from tests.compiler.generation.models import byte_tokenizer
from tests.compiler.serving.server import serving

pytest.importorskip("transformers")

Array = np.ndarray[Any, Any]
_LAYER = "model.layers.0."
_ALPHA, _RANK = 6, 4
_STRONG = 60  # alpha of adapters that change the tokens
_SCALE = np.float32(_ALPHA / _RANK)


def _write(folder: Path, tensors: dict[str, Array], **config: Any) -> Path:
    """Write an adapter with these tensors, under peft's names."""
    folder.mkdir(exist_ok=True)
    save_file(
        {f"base_model.model.{name}": each for name, each in tensors.items()}, folder / "adapter_model.safetensors"
    )
    settings = {"peft_type": "LORA", "r": _RANK, "lora_alpha": _ALPHA, "target_modules": ["q_proj"], **config}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def _pair(module: str, rows: int, depth: int, rank: int = _RANK) -> tuple[dict[str, Array], Array]:
    """The tensors of a module's adapter, and their product (rows, depth)."""
    random = np.random.default_rng(len(module) + rows)
    a, b = (random.standard_normal(shape).astype(np.float32) * 0.1 for shape in ((rank, depth), (rows, rank)))
    return {f"{module}.lora_A.weight": a, f"{module}.lora_B.weight": b}, b @ a


def _merged(base: Path, adapter: Path, name: str) -> Array:
    reader = AdaptedReader(SafetensorsFolder(base), [Adapter(adapter)], rounds=False)
    found: Array = reader.matrix(name).data
    return found


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A small Llama: its folder, and the torch module."""
    folder = tmp_path_factory.mktemp("base")
    return folder, save_model("llama", folder, num_hidden_layers=1, tie_word_embeddings=False)


def test_logits_are_those_of_the_merged_model(base: tuple[Path, Any], tmp_path: Path) -> None:
    import torch

    folder, _ = base
    reference = save_model("llama", tmp_path / "copy", num_hidden_layers=1, tie_word_embeddings=False)
    adapters, weights = [], dict(reference.named_parameters())
    for index, modules in enumerate((["self_attn.q_proj", "mlp.down_proj"], ["self_attn.q_proj", "self_attn.v_proj"])):
        tensors: dict[str, Array] = {}
        for module in modules:
            weight = weights[f"{_LAYER}{module}.weight"]
            own, product = _pair(_LAYER + module, weight.shape[0], weight.shape[1])
            tensors |= own
            with torch.no_grad():
                weight.add_(torch.from_numpy(_SCALE * product))
        adapters.append(_write(tmp_path / f"adapter{index}", tensors))
    prompt = np.random.default_rng(1).integers(1, reference.config.vocab_size, 9)
    wanted, _ = greedy(reference, prompt, 1)
    found = compiler.compile(folder, adapters=adapters, threads=1).session(capacity=16).run([prompt[None]])["logits"]
    np.testing.assert_allclose(found[0, 0], wanted[0], rtol=0, atol=1e-5 * abs(wanted).max())


class _Kept(NamedTuple):
    """A folder, its adapters by name, and the torch models of the base (None) and with each adapter merged."""

    folder: Path
    adapters: dict[str, Path]
    models: dict[str | None, Any]


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> _Kept:
    """Two adapters with different ranks and modules for one base, which has a tokenizer."""
    import torch

    folder = tmp_path_factory.mktemp("kept")
    sizes: dict[str, Any] = {
        "num_hidden_layers": 1,
        "tie_word_embeddings": False,
        "vocab_size": 280,
        "eos_token_id": 279,
    }
    models: dict[str | None, Any] = {None: save_model("llama", folder / "base", **sizes)}
    (folder / "base" / "tokenizer.json").write_text(json.dumps(byte_tokenizer([])))
    changed = {
        "first": ("self_attn.q_proj", "mlp.up_proj", "mlp.down_proj", "lm_head"),
        "second": ("self_attn.v_proj",),
    }
    adapters = {}
    for rank, (name, modules) in enumerate(changed.items(), 3):
        models[name] = save_model("llama", folder / "copy", **sizes)
        tensors: dict[str, Array] = {}
        for module in modules:
            whole = module if module == "lm_head" else _LAYER + module
            weight = models[name].get_parameter(f"{whole}.weight")
            own, product = _pair(whole, weight.shape[0], weight.shape[1], rank)
            tensors |= own
            with torch.no_grad():
                weight.add_(torch.from_numpy(np.float32(_STRONG / rank) * product))
        adapters[name] = _write(folder / name, tensors, r=rank, lora_alpha=_STRONG)
    return _Kept(folder / "base", adapters, models)


def test_sessions_choose_the_adapter(kept: _Kept) -> None:
    module = compiler.compile(kept.folder, adapters=kept.adapters, threads=1)
    assert module.adapters == ("first", "second")
    prompt = np.random.default_rng(1).integers(1, 256, 9)
    for name, model in kept.models.items():
        wanted, _ = greedy(model, prompt, 1)
        found = module.session(capacity=16, adapter=name).run([prompt[None]])["logits"][0, 0]
        np.testing.assert_allclose(found, wanted[0], rtol=0, atol=1e-5 * abs(wanted).max())
    with pytest.raises(OptionError, match="no adapter 'third'"):
        module.session(capacity=16, adapter="third")


def test_requests_choose_the_adapter(kept: _Kept, tmp_path: Path) -> None:
    """They share a run, and none reads the keys and values of another one's prompt."""
    module = compiler.compile(kept.folder, adapters=kept.adapters, threads=1, sequences=True)
    model = LanguageModel(module)
    prompt = np.random.default_rng(3).integers(1, 256, 40)
    wanted = {name: greedy(each, prompt, 6)[1] for name, each in kept.models.items()}
    assert len({*map(tuple, wanted.values())}) == len(wanted)
    with Scheduler(model, max_sequences=2, context=64) as scheduler:
        for _ in range(2):
            handles = {
                name: scheduler.submit(prompt.tolist(), adapter=name, max_new_tokens=6, speculative=2)
                for name in wanted
            }
            assert {name: list(each.result().tokens) for name, each in handles.items()} == wanted
    module.export(tmp_path / "base.twm")
    with serving([model_options({"path": str(tmp_path / "base.twm")}, "a model")]) as running:
        asked = {"prompt": prompt.tolist(), "max_tokens": 6, "temperature": 0}
        for name in ("base", "first", "second"):
            reply = running.ask("POST", "/v1/completions", {**asked, "model": name}).json
            tokens = wanted[None if name == "base" else name]
            assert (reply["model"], reply["choices"][0]["text"]) == (name, model.decode(tokens))


def test_adapters_that_cannot_be_kept_are_named(kept: _Kept, tmp_path: Path) -> None:
    name = f"{_LAYER}self_attn.q_proj"
    pair, _ = _pair(name, 64, 48)
    table = {
        "model.embed_tokens.lora_embedding_A": np.zeros((4, 280)),
        "model.embed_tokens.lora_embedding_B": np.zeros((48, 4)),
    }
    cases = [
        ({**pair, f"{name}.lora_magnitude_vector": np.ones(64)}, "lora_magnitude_vector"),
        ({**pair, "lm_head.weight": np.zeros((280, 48))}, "lm_head.weight"),
        (table, "lora_embedding"),
    ]
    for tensors, message in cases:
        adapter = _write(tmp_path, {key: np.asarray(each, np.float32) for key, each in tensors.items()})
        with pytest.raises(OptionError, match=message):
            import_language_model(kept.folder, LanguageModelOptions(kept_adapters={"a": adapter}))


@pytest.mark.parametrize(
    ("config", "rank", "scale"),
    [
        ({}, 4, 6 / 4),
        ({"use_rslora": True}, 4, 6 / 2),
        ({"rank_pattern": {"self_attn.q_proj": 2}}, 2, 6 / 2),
        ({"rank_pattern": {"k_proj": 2}, "alpha_pattern": {"^model.layers.0.self_attn.q_proj": 10}}, 4, 10 / 4),
        ({"alpha_pattern": {"0.self_attn.q_proj": 1, "q_proj": 2}}, 4, 1 / 4),
    ],
)
def test_scales_are_those_of_the_configuration(
    config: dict[str, Any], rank: int, scale: float, base: tuple[Path, Any], tmp_path: Path
) -> None:
    folder, model = base
    name = f"{_LAYER}self_attn.q_proj"
    weight = model.get_parameter(f"{name}.weight").detach().numpy()
    tensors, product = _pair(name, weight.shape[0], weight.shape[1], rank)
    found = _merged(folder, _write(tmp_path, tensors, **config), f"{name}.weight")
    np.testing.assert_allclose(found, weight + np.float32(scale) * product, rtol=1e-6, atol=1e-7)


def test_rows_of_dora_have_the_lengths_that_it_stores(base: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = base
    name = f"{_LAYER}self_attn.k_proj"
    weight = model.get_parameter(f"{name}.weight").detach().numpy()
    tensors, product = _pair(name, weight.shape[0], weight.shape[1])
    lengths = np.random.default_rng(5).uniform(1, 2, len(weight)).astype(np.float32)
    adapter = _write(tmp_path, {**tensors, f"{name}.lora_magnitude_vector": lengths}, use_dora=True)
    found = _merged(folder, adapter, f"{name}.weight")
    changed = weight + _SCALE * product
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), lengths, rtol=1e-6)
    np.testing.assert_allclose(found / lengths[:, None], changed / np.linalg.norm(changed, axis=1)[:, None], rtol=1e-5)


def test_embeddings_and_whole_modules_are_changed(base: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = base
    embedding = model.get_parameter("model.embed_tokens.weight").detach().numpy()
    vocabulary, hidden = embedding.shape
    random = np.random.default_rng(6)
    a, b = random.standard_normal((_RANK, vocabulary)), random.standard_normal((hidden, _RANK))
    head = random.standard_normal((vocabulary, hidden)).astype(np.float32)
    tensors = {"model.embed_tokens.lora_embedding_A": a, "model.embed_tokens.lora_embedding_B": b}
    stored = {**{key: each.astype(np.float32) for key, each in tensors.items()}, "lm_head.weight": head}
    adapter = _write(tmp_path, stored, modules_to_save=["lm_head"])
    # peft saves the table as well where an adapter changes it, which may have been made longer or trained.
    table = random.standard_normal((vocabulary, hidden)).astype(np.float32)
    stored["model.embed_tokens.base_layer.weight"] = table
    found = _merged(folder, _write(tmp_path / "own", stored), "model.embed_tokens.weight")
    np.testing.assert_allclose(found, table + _SCALE * (b @ a).T, rtol=1e-5, atol=1e-5)
    found = _merged(folder, adapter, "model.embed_tokens.weight")
    np.testing.assert_allclose(found, embedding + _SCALE * (b @ a).T, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(_merged(folder, adapter, "lm_head.weight"), head)


def test_weights_that_are_stored_transposed_are_changed_so(tmp_path: Path) -> None:
    model = save_model("gpt2", tmp_path / "base", n_layer=1)
    name = "transformer.h.0.attn.c_attn"
    weight = model.get_parameter(f"{name}.weight").detach().numpy()
    tensors, product = _pair(name, weight.shape[1], weight.shape[0])
    adapter = _write(tmp_path / "adapter", tensors, fan_in_fan_out=True)
    found = _merged(tmp_path / "base", adapter, f"{name}.weight")
    np.testing.assert_allclose(found, weight + _SCALE * product.T, rtol=1e-6, atol=1e-7)


def test_quantized_weights_are_changed_where_they_are_quantized_again(tmp_path: Path) -> None:
    model = write_quantized(kinds()["gptq"], tmp_path / "base")
    name = f"{_LAYER}self_attn.q_proj"
    weight = model.get_parameter(f"{name}.weight").detach().numpy()
    tensors, product = _pair(name, weight.shape[0], weight.shape[1])
    adapter = _write(tmp_path / "adapter", tensors)
    with pytest.raises(OptionError, match="weights are quantized"):
        import_language_model(tmp_path / "base", LanguageModelOptions(adapters=(adapter,)))
    import_language_model(tmp_path / "base", LanguageModelOptions("int8", adapters=(adapter,)))
    from compiler.frontends.llm.quantized.folder import open_folder

    reader = AdaptedReader(open_folder(tmp_path / "base"), [Adapter(adapter)], rounds=True)
    found = reader.matrix(f"{name}.weight")
    assert found.kind == "F32"
    np.testing.assert_allclose(found.data, weight + _SCALE * product, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "type 'IA3'"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "'layer_replication'"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4'"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "'target_parameters'"),
        ({"rank_pattern": {"layers.[0-9]+.*": 2}}, "patterns of modules"),
    ],
)
def test_adapters_that_are_not_supported_are_named(
    config: dict[str, Any], message: str, base: tuple[Path, Any], tmp_path: Path
) -> None:
    tensors, _ = _pair(f"{_LAYER}self_attn.q_proj", 64, 48)
    adapter = _write(tmp_path, tensors, **config)
    with pytest.raises(OptionError, match=message):
        import_language_model(base[0], LanguageModelOptions(adapters=(adapter,)))


def test_adapters_of_another_model_are_refused(base: tuple[Path, Any], tmp_path: Path) -> None:
    name = f"{_LAYER}self_attn.q_proj"
    whole, _ = _pair(name, 64, 48)
    half = {key: each for key, each in whole.items() if "lora_A" in key}
    cases: list[tuple[dict[str, Array], dict[str, Any], str]] = [
        (_pair(name, 64, 40)[0], {}, "expected"),
        (_pair(name, 60, 48)[0], {}, "expected"),
        (whole, {"r": 8}, "has rank 4"),
        (half, {}, r"lacks the tensor .*lora_B"),
        (_pair("model.layers.7.self_attn.q_proj", 64, 48)[0], {}, r"layers\.7.* does not have"),
    ]
    for tensors, config, message in cases:
        options = LanguageModelOptions(adapters=(_write(tmp_path, tensors, **config),))
        with pytest.raises(InvalidModelError, match=message):
            import_language_model(base[0], options)
    (tmp_path / "adapter_model.safetensors").unlink()
    with pytest.raises(StorageError, match=r"adapter_model\.safetensors"):
        Adapter(tmp_path)


def test_adapters_are_for_folders(base: tuple[Path, Any], tmp_path: Path) -> None:
    from tests.compiler.generation.models import write_gguf

    adapter = _write(tmp_path / "adapter", _pair(f"{_LAYER}self_attn.q_proj", 64, 48)[0])
    path = write_gguf(tmp_path / "model.gguf", "F32")
    with pytest.raises(OptionError, match="adapters are for folders"):
        compiler.compile(path, adapters=[adapter])
    with pytest.raises(OptionError, match="for language models"):
        compiler.compile(b"", adapters=[adapter])
